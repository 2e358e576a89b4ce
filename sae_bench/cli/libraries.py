"""Libraries that would talk over our own messages."""


def quieten_libraries() -> None:
    """Leave the screen to our own progress; libraries' warnings go to the log."""
    import transformers
    from datasets.utils.logging import disable_progress_bar

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    disable_progress_bar()
