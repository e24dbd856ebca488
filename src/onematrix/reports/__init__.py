"""What people look at: pictures of matrices, curves, tables, and the self-contained page."""
