class Packed:
    pass


class PackedLinear:
    pass


def quantised(*a):
    pass


def floats_by_gguf(*a):
    pass


def from_ggml(*a):
    pass


def ggml_kind(*a):
    pass


def row_halves_swapped(*a):
    pass


def stacked(*a):
    pass
