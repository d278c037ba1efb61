"""A module with a dependency that is not installed."""

import a_package_nobody_has  # noqa: F401  # that it is missing is the point
