//! Eigenvectors of small symmetric matrices, in a fixed order of operations: a dataset's tables do not depend on a library.

use crate::Result;
use crate::memory::filled;

/// Sweeps over all pairs of rows; about ten are enough for 128 rows.
const SWEEPS: usize = 60;

/// The eigenvalues of a symmetric matrix (n, n), falling, and its eigenvectors as the rows of a matrix (n, n), by the cyclic
/// Jacobi method (Golub and Van Loan, Matrix Computations, 8.5). The largest component of each is positive.
pub fn eigen(matrix: &[f64], n: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut a = filled(0.0, n * n)?;
    a.copy_from_slice(matrix);
    // Row i is eigenvector i.
    let mut v = filled(0.0, n * n)?;
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let total: f64 = a.iter().map(|value| value * value).sum();
    for _ in 0..SWEEPS {
        let mut rest = 0.0;
        for p in 0..n {
            for q in p + 1..n {
                rest += a[p * n + q] * a[p * n + q];
            }
        }
        if rest <= total * 1e-30 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|i| a[i * n + i]).collect();
    let mut vectors = Vec::new();
    for i in order {
        let row = &v[i * n..][..n];
        let mut largest = 0;
        for (at, value) in row.iter().enumerate() {
            if value.abs() > row[largest].abs() {
                largest = at;
            }
        }
        let sign = if row[largest] < 0.0 { -1.0 } else { 1.0 };
        vectors.extend(row.iter().map(|value| sign * value));
    }
    Ok((values, vectors))
}

/// Makes element (p, q) zero by a rotation.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let off = a[p * n + q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
    for k in 0..n {
        let (x, y) = (a[p * n + k], a[q * n + k]);
        (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
    }
    for k in 0..n {
        let (x, y) = (v[p * n + k], v[q * n + k]);
        (v[p * n + k], v[q * n + k]) = (c * x - s * y, s * x + c * y);
    }
}

/// `a @ b` of matrices (n, n).
pub fn product(a: &[f64], b: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut out = filled(0.0, n * n)?;
    for i in 0..n {
        for k in 0..n {
            let by = a[i * n + k];
            for j in 0..n {
                out[i * n + j] += by * b[k * n + j];
            }
        }
    }
    Ok(out)
}

/// The symmetric matrix with the given eigenvectors as rows, and eigenvalues.
pub fn compose(values: &[f64], vectors: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut out = filled(0.0, n * n)?;
    for (value, row) in values.iter().zip(vectors.chunks_exact(n)) {
        for i in 0..n {
            for j in 0..n {
                out[i * n + j] += value * row[i] * row[j];
            }
        }
    }
    Ok(out)
}

/// The transpose of a matrix (n, n).
pub fn transposed(matrix: &[f64], n: usize) -> Result<Vec<f64>> {
    let mut out = filled(0.0, n * n)?;
    for (at, value) in matrix.iter().enumerate() {
        out[at % n * n + at / n] = *value;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn vectors_are_orthonormal_and_give_the_matrix(
            n in 1usize..12,
            entries in proptest::collection::vec(-2f64..2.0, 144),
            scale in prop_oneof![Just(1.0), Just(1e-9), Just(1e12)],
        ) {
            let matrix: Vec<f64> =
                (0..n * n).map(|at| scale * (entries[at] + entries[at % n * n + at / n])).collect();
            let (values, vectors) = eigen(&matrix, n).unwrap();
            prop_assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
            let unit = product(&vectors, &transposed(&vectors, n).unwrap(), n).unwrap();
            for (at, value) in unit.iter().enumerate() {
                prop_assert!((value - f64::from(u8::from(at / n == at % n))).abs() < 1e-12);
            }
            let again = compose(&values, &vectors, n).unwrap();
            prop_assert!(again.iter().zip(&matrix).all(|(a, b)| (a - b).abs() < 1e-12 * scale * n as f64));
            for row in vectors.chunks(n) {
                prop_assert!(row.iter().copied().fold(0.0, f64::max) >= row.iter().copied().fold(0.0, |a, b: f64| a.max(-b)));
            }
        }
    }

    #[test]
    fn a_constant_matrix_has_one_eigenvalue() {
        let (values, _) = eigen(&[1.0; 9], 3).unwrap();
        assert!((values[0] - 3.0).abs() < 1e-12 && values[1].abs() < 1e-12 && values[2].abs() < 1e-12);
        assert_eq!(eigen(&[0.0; 4], 2).unwrap().0, [0.0, 0.0]);
    }
}
