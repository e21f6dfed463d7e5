# SPDX-License-Identifier: BSD-3-Clause
"""Compiled drivers: workspace, blocking and threads. One file an algorithm or family of operations."""
