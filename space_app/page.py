"""The page: what a visitor sees, and what happens when they touch it."""

from __future__ import annotations

import os
from pathlib import Path

import gallery
import gradio as gr
from endpoints import Endpoints
from handlers import Handlers
from huggingface_hub import get_token
from jobs import Service
from orders import BUNDLED, KNOWN, STEPS, TEXTS

TITLE = "hf-mamba-prune"
STYLE = Path(__file__).parent / "style.css"
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
RECIPES = [
    ("quick: reconstruction, no training", "quick"),
    (f"standard: that, and {STEPS} steps of distillation", "standard"),
    (f"paper: pruned in {STEPS} steps of training", "paper"),
]
HEADER = """<header class="top"><h1>Make a Mamba small and fast</h1>
<p>Prune a Mamba language model from the Hub: fewer weights, a smaller file, more tokens a second, with every claim
measured on this machine.</p></header>"""
ABOUT = """### The same on your machine

    pip install hf-mamba-prune
    hf-mamba-prune state-spaces/mamba-370m --sparsity 0.7 --push

### From a program

    from gradio_client import Client
    space = Client("USER/SPACE")
    space.predict("mamba-wiki-3m", api_name="/describe_model")
    space.predict("mamba-wiki-3m", sparsity=0.7, api_name="/prune_model")

Agents find the same two as MCP tools at `gradio_api/mcp`.

### What happens to your data

A job runs in a process of its own. Its files go away soon after you close the page, and half an hour after it is done
at the latest. Nobody else sees them. Models are read without an account, so private and gated ones cannot be pruned
here; your token is used for a push or a job that you start, and for nothing else."""
SETUP = """() => {
  for (const id of ["facts", "progress", "pushed", "launched"]) {
    document.getElementById(id)?.setAttribute("aria-live", "polite");
  }
  document.documentElement.lang = "en";
}"""


def can_sign_in() -> bool:
    """In a Space; where a developer is signed in, gradio plays it with a token that the Hub refuses."""
    return os.environ.get("SYSTEM") == "spaces" or get_token() is not None


def build(service: Service) -> gr.Blocks:
    """The whole app."""
    handle, programs = Handlers(service), Endpoints(service)
    with gr.Blocks(title=TITLE, delete_cache=(60, 600), analytics_enabled=False) as page:
        with gr.Row(elem_classes="masthead"):
            gr.HTML(HEADER)
            if can_sign_in():
                gr.LoginButton("Sign in", size="md", scale=0, min_width=150, elem_id="login")
        with gr.Tab("Prune"):
            _prune_tab(page, handle)
        with gr.Tab("Gallery"):
            _gallery_tab()
        with gr.Tab("About"):
            gr.Markdown(ABOUT)
        gr.api(programs.describe_model, api_name="describe_model", concurrency_limit=4)
        gr.api(programs.prune_model, api_name="prune_model", concurrency_limit=None)
        page.unload(handle.leave)
    for function in page.fns.values():
        if function.api_name == "_check_login_status":  # the sign-in button's own: no tool for anybody
            function.api_visibility = "private"
    return page.queue(max_size=64, default_concurrency_limit=None)


def _prune_tab(page: gr.Blocks, handle: Handlers) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            model = gr.Dropdown(
                list(KNOWN), value=BUNDLED, label="Model", allow_custom_value=True,
                info="A Mamba or Mamba-2 on the Hub: user/name",
            )  # fmt: skip
            sparsity = gr.Slider(
                0.1, 0.9, 0.7, step=0.05, label="Sparsity", info="Share of the prunable weights that become zero"
            )
            recipe = gr.Radio(RECIPES, value="quick", label="Recipe")
            with gr.Accordion("Calibration", open=False):
                text = gr.Dropdown(list(TEXTS), value=next(iter(TEXTS)), label="Text that the weights are judged on")
                samples = gr.Slider(8, 256, 32, step=8, label="Sequences of 512 tokens")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                start = gr.Button("Prune it", variant="primary", elem_id="start")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel", interactive=False)
        with gr.Column(scale=3, min_width=320):
            facts = gr.HTML(elem_id="facts")
            progress = gr.HTML(elem_id="progress")
    order = [model, sparsity, recipe, text, samples, seed]
    with gr.Column(visible=False, elem_id="result") as shown:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                table = gr.HTML()
                download = gr.HTML(elem_id="download")
            with gr.Column(scale=2, min_width=320):
                heat = gr.HTML()
        with gr.Tab("Try it"):
            _writing_tab(handle)
        with gr.Tab("Publish"):
            _push_tab(handle)
        with gr.Tab("Model card"):
            card = gr.Markdown(elem_id="card")
    with gr.Accordion("Too big for this machine? Run it as a Hugging Face Job on your account", open=False):
        _job_tab(handle, order)
    quiet = dict(show_progress="hidden", api_visibility="private")
    for part in order[:3] + [samples]:
        part.change(handle.inspect, order, [facts, start], trigger_mode="always_last", **quiet)
    kept = gr.BrowserState("", storage_key="hf-mamba-prune-result")
    result = [shown, table, heat, download, card, kept]
    start.click(handle.prune, order, [progress, start, cancel, *result], trigger_mode="once", **quiet)
    cancel.click(handle.cancel, None, None, **quiet)
    page.load(handle.inspect, order, [facts, start], **quiet)
    page.load(handle.restore, kept, [progress, *result], **quiet)
    page.load(None, js=SETUP)


def _writing_tab(handle: Handlers) -> None:
    with gr.Row():
        prompt = gr.Textbox("The history of", label="Prompt", max_length=500, lines=2, scale=4)
        tokens = gr.Slider(8, 128, 48, step=8, label="Tokens", scale=2)
        sampled = gr.Checkbox(False, label="Sample", scale=1)
    write = gr.Button("Let both write", elem_id="write")
    with gr.Row():
        columns = []
        for name in ("Dense", "Pruned and packed"):
            with gr.Column(min_width=280):
                columns.append(gr.Textbox(label=name, lines=6, interactive=False, elem_classes="written"))
                columns.append(gr.Markdown(elem_classes="rate"))
    inputs = [prompt, tokens, sampled]
    write.click(handle.write, inputs, columns, show_progress="hidden", api_visibility="private", trigger_mode="once")


def _push_tab(handle: Handlers) -> None:
    if not can_sign_in():
        gr.Markdown("Signing in works in a Space on the Hub only.")
        return
    with gr.Row():
        name = gr.Textbox(label="Repository", placeholder="name, on your account", max_length=96, scale=3)
        private = gr.Checkbox(True, label="Private", scale=1)
        proposal = gr.Checkbox(False, label="As a pull request", scale=1)
    push = gr.Button("Push to the Hub", elem_id="push")
    pushed = gr.HTML(elem_id="pushed")
    push.click(
        handle.push, [name, private, proposal], pushed, show_progress="hidden", api_visibility="private",
        trigger_mode="once",
    )  # fmt: skip


def _job_tab(handle: Handlers, order: list) -> None:
    if not can_sign_in():
        gr.Markdown("Signing in works in a Space on the Hub only.")
        return
    gr.Markdown("The same command on a machine of your choice; the result is pushed to your account, private.")
    with gr.Row():
        flavor = gr.Dropdown(
            ["cpu-upgrade", "t4-small", "l4x1", "a10g-small", "a100-large"], value="l4x1", label="Machine"
        )
        hours = gr.Slider(0.5, 12, 2, step=0.5, label="Hours at most")
    with gr.Row():
        price = gr.Button("What does it cost?", elem_id="price")
        launch_button = gr.Button("Start the job", elem_id="launch")
    launched = gr.HTML(elem_id="launched")
    for button, function in ((price, handle.price), (launch_button, handle.launch)):
        button.click(
            function, [*order, flavor, hours], launched, show_progress="hidden", api_visibility="private",
            trigger_mode="once",
        )  # fmt: skip


def _gallery_tab() -> None:
    reports = gallery.read_reports()
    gr.HTML(gallery.picture(reports))
    gr.Dataframe(
        gallery.rows(reports), headers=gallery.COLUMNS, interactive=False, label="Measured runs; sort by a column",
        column_widths=["230px", "90px", "90px", "110px", "90px", "90px", "90px", "300px"],
    )  # fmt: skip


def launch(service: Service, routes: list) -> None:
    """Serve the page until the process is told to end."""
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"]
    ).set(
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_hover_dark="#115e59",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_300",
    )
    build(service).launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
        theme=theme,
        css_paths=STYLE,
        app_kwargs={"routes": routes},
        mcp_server=True,
        ssr_mode=False,
        show_error=False,
        footer_links=["api"],
        max_file_size="1kb",
        max_threads=80,
    )
