# SPDX-License-Identifier: BSD-3-Clause
from typing import Any

def openmp() -> dict[str, Any]: ...
