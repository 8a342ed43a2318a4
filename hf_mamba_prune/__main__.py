"""`python -m hf_mamba_prune` is the command."""

from hf_mamba_prune.command.cli import main

if __name__ == "__main__":
    main()
