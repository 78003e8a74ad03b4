"""The method itself: nothing may import it before it is asked for."""


class Good:
    pass
