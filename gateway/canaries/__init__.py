"""A new bundle on a share of the traffic, compared with the champion after every request."""
