"""What makes the method fast, distributed, unkillable or pretty: to be skipped at first."""


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
