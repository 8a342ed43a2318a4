"""Start the Space. The processes of jobs import this file too, so it does nothing else."""

if __name__ == "__main__":
    from serve import main

    main()
