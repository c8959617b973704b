"""The versioned request and response types that Hub, Site, pilot and SDK share.

JSON by msgspec. A reader ignores fields it does not know (promise I17); only what users write by hand
(Job specs) refuses unknown fields, because there a typing error must not pass in silence.
"""
