"""Commands of a user: one module each, with one function of the same name; its parameters are the flags.

A parameter before `/` is given by its place. `Annotated` holds the help of a flag.
"""
