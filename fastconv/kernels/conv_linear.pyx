# SPDX-License-Identifier: BSD-3-Clause
"""A convolution whose kernel covers the whole input is a linear layer: one matrix product for all images.

Forward y[n][o] = x[n] . w[o], input gradient dx = dy @ w, weight gradient dw = dy^T @ x, each over flattened images.
"""

from fastconv.kernels.correlate cimport Weights

from fastconv.kernels import elementwise, gemm


cdef matrix(array, rows, columns):
    """A contiguous array as a matrix."""
    return array if array.ndim == 2 and array.shape[1] == columns else array.reshape(rows, columns)


def run(products, lattice, x, w, y, groups, transposed, bias, residual, activation, threads, max_workspace):
    """As in the other algorithms, for problems with problem.Conv.is_linear and linear layers; `lattice` is not needed.

    `products`: see gemm.multiply.
    """
    if threads == 0:
        return gemm.workspace(y.itemsize, products)
    array = w.array if isinstance(w, Weights) else w
    outputs = len(array)
    inputs = array.size // outputs
    if transposed or not isinstance(w, Weights):
        w = matrix(array, outputs, inputs)
    rows = (x if transposed else y).size // outputs
    a = matrix(x, rows, outputs if transposed else inputs)
    c = matrix(y, rows, inputs if transposed else outputs)
    gemm.multiply(a, False, w, not transposed, bias, c, threads, products)
    if residual is not None:
        c += residual.reshape(c.shape)
    if activation >= 0:
        elementwise.activation(activation, c, c, None, threads)
    return gemm.workspace(y.itemsize, products)


def weight_gradient(products, lattice, x, dw, dy, groups, threads, max_workspace):
    """dw[o][...] = sum over n of dy[n][o] * x[n][...]; as in the other weight gradients."""
    if threads == 0:
        return gemm.workspace(dw.itemsize, products)
    gemm.multiply(dy.reshape(len(dy), -1), True, x.reshape(len(x), -1), False, None, dw.reshape(len(dw), -1), threads,
                  products)
    return gemm.workspace(dw.itemsize, products)
