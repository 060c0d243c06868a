"""`retort demo`: the whole product on one machine, with real parts."""
