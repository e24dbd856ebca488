"""Program → torch module that is as fast as the native one: start with `pipeline`."""
