class Delta:
    pass


class Lora:
    pass


def read_lora(t, s):
    raise NotImplementedError
