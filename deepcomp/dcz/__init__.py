"""The `.dcz` file: the network, its layer kinds, the container, conversion to and from Keras, and the coders."""
