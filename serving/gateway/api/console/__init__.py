"""Console: the server's side of the page at `/console`: its files, who is signed in, and the way to single sign-on and back.

What the page shows and changes it asks of the same routes as every other client (CON-1).
"""
