# SPDX-License-Identifier: BSD-3-Clause
"""Timing fastconv on named layers of well-known networks, alone and against its peers."""
