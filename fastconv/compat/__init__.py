# SPDX-License-Identifier: BSD-3-Clause
"""fastconv under the names and conventions of other code, one module for each."""
