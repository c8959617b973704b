"""The Hub: the HTTP service over the store. Routes are thin; every decision is made in `core` and `store`."""
