//! `e^d - 1` for small `d`, by a polynomial instead of an exponential.

/// Polynomials `Q` with `|d Q(d) - (e^d - 1)| <= 2e-8` for `|d|` up to their reach.
///
/// They interpolate `(e^d - 1) / d` at Chebyshev's nodes, so that the error vanishes with `d`.
const NEAR: [Near; 4] = [
    Near {
        reach: 0.0372,
        units: 1e15,
        q: &[1.0, 0.500043141, 0.166675295],
    },
    Near {
        reach: 0.1135,
        units: 1e10,
        q: &[0.999999827, 0.499999971, 0.166774039, 0.0416845609],
    },
    Near {
        reach: 0.2461,
        units: 1e7,
        q: &[1.0, 0.499998406, 0.166666439, 0.0417719089, 0.00834836433],
    },
    Near {
        reach: 0.6829,
        units: 1e5,
        q: &[
            1.0,
            0.500000278,
            0.166666697,
            0.041661907,
            0.00833280529,
            0.00140926156,
            0.000200673663,
        ],
    },
];

struct Near {
    /// Largest `|d|`.
    reach: f64,
    /// The pass works in units of `c`: this and its inverse bound `|c|`, whose powers have to be f32 values.
    units: f64,
    /// Coefficients of `Q`, lowest power first; their number is the degree of `d Q(d)`.
    q: &'static [f64],
}

/// The least degree that reaches `|a g + c u| <= largest`, and what it reaches; none for large ones, or those that are not a
/// number, or an `a` or `c` far from usual.
pub(crate) fn degree_for(largest: f64, a: f64, c: f64) -> Option<(usize, f64)> {
    let near = NEAR.iter().find(|near| largest <= near.reach)?;
    let c = c.abs();
    let usual = c * near.units >= 1.0 && c <= near.units && largest + a.abs() <= c * 1e30;
    usual.then_some((near.q.len(), near.reach))
}

/// Coefficients of the polynomial of a degree; empty for one that there is not.
pub(crate) fn coefficients(degree: usize) -> &'static [f64] {
    let near = NEAR.iter().find(|near| near.q.len() == degree);
    near.map_or(&[], |near| near.q)
}

#[cfg(test)]
mod tests {
    use super::{NEAR, coefficients, degree_for};

    #[test]
    fn every_polynomial_keeps_its_error_over_its_reach() {
        for near in &NEAR {
            for i in -10_000..=10_000 {
                let d = near.reach * f64::from(i) / 10_000.0;
                let q = near.q.iter().rev().fold(0.0, |q, c| q * d + c);
                assert!(
                    (d * q - d.exp_m1()).abs() <= 2.1e-8,
                    "degree {}, d = {d}",
                    near.q.len()
                );
            }
        }
    }

    #[test]
    fn the_least_degree_that_reaches_is_taken() {
        let degree = |largest, c| degree_for(largest, 0.0, c).map(|(degree, _)| degree);
        assert_eq!(degree(0.0, 1.0), Some(3));
        assert_eq!(degree(0.05, -1.0), Some(4));
        assert_eq!(degree(0.68, 1e-3), Some(7));
        assert_eq!(degree(0.7, 1.0), None);
        assert_eq!(degree(f64::NAN, 1.0), None);
        assert_eq!(degree(0.01, 1e-12), Some(3));
        for c in [0.0, 1e-40, 1e40] {
            assert_eq!(degree(0.01, c), None);
        }
        assert_eq!(degree_for(0.01, 1e300, 1.0), None);
        assert_eq!(coefficients(5).len(), 5);
    }
}
