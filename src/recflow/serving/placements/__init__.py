"""What a shop shows where: one function a placement, a request in, an answer out."""
