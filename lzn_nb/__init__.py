__version__ = "0.1.0"


def __getattr__(name):
    "`lzn_nb.load_pretrained`, found when it is asked for: importing the package stays light."
    if name != "load_pretrained": raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .saved import load_pretrained
    return load_pretrained
