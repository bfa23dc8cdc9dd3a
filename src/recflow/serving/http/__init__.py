"""The HTTP side of the endpoint, as plain ASGI: who may ask what, within which limits, and how answers look."""
