"""The checks of the contract, one module per section: plain async functions with plain asserts."""
