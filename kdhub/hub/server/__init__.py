"""`kdhub hub serve`: a hub of one's own, which speaks the protocol of the Hugging Face Hub, on one folder.

`store` keeps repositories, `access` says who may do what, `app` takes requests, `api` answers them, `pages` shows
repositories in a browser.
"""
