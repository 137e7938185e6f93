//! Hook sites and attention masks.

use std::error::Error;
use std::path::PathBuf;

use neox_core::{
    Branch, ForwardError, HookError, Hooks, LoadOptions, Model, NoHooks, Recorder, Site,
};
use tch::{Kind, TchError, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn variant(name: &str) -> Result<Model> {
    let dir = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/variants"
    ));
    Ok(Model::load(&dir.join(name), &LoadOptions::default())?)
}

fn max_abs_diff(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.size(), b.size());
    Ok(a.f_sub(b)?.f_abs()?.f_max()?.f_double_value(&[])?)
}

/// Applies one function at one site and counts the calls.
struct At<F> {
    site: Site,
    change: F,
    calls: usize,
}

impl<F: FnMut(Tensor) -> std::result::Result<Tensor, TchError>> Hooks for At<F> {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _: Site, value: Tensor) -> std::result::Result<Tensor, HookError> {
        self.calls += 1;
        Ok((self.change)(value)?)
    }
}

fn sites(layer: usize) -> [Site; 9] {
    [
        Site::ResidPre(layer),
        Site::ResidMid(layer),
        Site::ResidPost(layer),
        Site::Pattern(layer),
        Site::HeadOut(layer),
        Site::MlpPre(layer),
        Site::MlpPost(layer),
        Site::LnFinalScale,
        Site::Logits,
    ]
}

fn tokens() -> Tensor {
    Tensor::from_slice(&[3i64, 14, 15, 92, 65, 35, 89, 79, 32, 38]).view([2, 5])
}

/// A hook that says its sites is told of one that the model does not have; it would never be called.
#[test]
fn sites_that_are_not_there_are_errors() -> Result<()> {
    let model = variant("parallel")?;
    let layers = model.config().num_hidden_layers;
    let pass = |site| {
        let mut recorder = Recorder::new([Site::ResidPre(0), site]);
        let passed = model.forward(&tokens(), None, &mut recorder).map(drop);
        (passed, recorder.take(site).is_some())
    };
    for site in sites(layers - 1) {
        let (passed, seen) = pass(site);
        assert!(passed.is_ok() && seen, "{site}");
    }
    for site in [Site::MlpPost(layers), Site::ResidPre(99), Site::MlpUp(0)] {
        let (passed, seen) = pass(site);
        assert!(
            matches!(passed, Err(ForwardError::NoSite { site: named, .. }) if named == site)
                && !seen,
            "{site}"
        );
    }
    Ok(())
}

/// Every site has its documented shape and is visited once, and what a hook keeps is never
/// overwritten by the rest of the pass.
#[test]
fn sites_have_their_shapes_and_keep_their_values() -> Result<()> {
    for name in ["parallel", "sequential"] {
        let model = variant(name)?;
        for site in sites(0) {
            let mut kept = None;
            let mut hook = At {
                site,
                change: |value: Tensor| {
                    kept = Some((value.shallow_clone(), value.f_detach_copy()?));
                    Ok(value)
                },
                calls: 0,
            };
            let _ = model.forward(&tokens(), None, &mut hook)?;
            assert_eq!(hook.calls, 1, "{name} {site}");
            let (live, copy) = kept.ok_or("not called")?;
            let shape: &[i64] = match site {
                Site::Pattern(_) => &[2, 4, 5, 5],
                Site::MlpPre(_) | Site::MlpPost(_) => &[2, 5, 64],
                Site::LnFinalScale => &[2, 5, 1],
                Site::Logits => &[2, 5, 96],
                _ => &[2, 5, 32],
            };
            assert_eq!(live.size(), shape, "{name} {site}");
            assert_eq!(max_abs_diff(&live, &copy)?, 0.0, "{name} {site}");
        }
    }
    Ok(())
}

/// A replacement at any site reaches the logits.
#[test]
fn replacements_take_effect() -> Result<()> {
    for name in ["parallel", "sequential"] {
        let model = variant(name)?;
        let plain = model.forward(&tokens(), None, &mut NoHooks)?;
        for site in sites(1) {
            let mut hook = At {
                site,
                change: |value: Tensor| value.f_square(), // a mere factor is lost in a LayerNorm

                calls: 0,
            };
            let changed = model.forward(&tokens(), None, &mut hook)?;
            assert!(max_abs_diff(&plain, &changed)? > 1e-4, "{name} {site}");
        }
    }
    Ok(())
}

/// The residual stream plus [`Model::unembed`] is the whole forward pass.
#[test]
fn unembed_completes_residual() -> Result<()> {
    let model = variant("parallel")?;
    let residual = model.residual(&tokens(), None, &mut NoHooks)?;
    let logits = model.forward(&tokens(), None, &mut NoHooks)?;
    assert_eq!(max_abs_diff(&model.unembed(&residual)?, &logits)?, 0.0);
    Ok(())
}

/// The model runs on from the residual stream before any block, and refuses one that is not its own.
#[test]
fn a_forward_goes_on_from_any_block() -> Result<()> {
    for name in ["parallel", "sequential"] {
        let model = variant(name)?;
        let last = model.residual(&tokens(), None, &mut NoHooks)?;
        for layer in 0..model.config().num_hidden_layers {
            let mut kept = None;
            let mut hook = At {
                site: Site::ResidPre(layer),
                change: |value: Tensor| {
                    kept = Some(value.shallow_clone());
                    Ok(value)
                },
                calls: 0,
            };
            let _ = model.residual(&tokens(), None, &mut hook)?;
            let before = kept.ok_or("not called")?;
            let on = model.residual_from(layer, &before, &mut NoHooks)?;
            assert_eq!(max_abs_diff(&on, &last)?, 0.0, "{name} {layer}");
        }
        let refused = |layer, resid: &Tensor| model.residual_from(layer, resid, &mut NoHooks);
        assert!(matches!(
            refused(9, &last),
            Err(ForwardError::Layer { layer: 9, .. })
        ));
        for wrong in [
            last.f_narrow(2, 0, 31)?,
            last.f_narrow(1, 0, 0)?,
            last.f_get(0)?,
            last.f_to_kind(Kind::Double)?,
        ] {
            assert!(matches!(
                refused(0, &wrong),
                Err(ForwardError::Residual { .. })
            ));
        }
    }
    Ok(())
}

/// Attention weights of the explicit path: rows sum to 1, nothing from the future.
#[test]
fn pattern_is_causal() -> Result<()> {
    let model = variant("parallel")?;
    let mut pattern = None;
    let mut hook = At {
        site: Site::Pattern(1),
        change: |value: Tensor| {
            pattern = Some(value.shallow_clone());
            Ok(value)
        },
        calls: 0,
    };
    let _ = model.forward(&tokens(), None, &mut hook)?;
    let pattern = pattern.ok_or("not called")?;
    let sums = pattern.f_sum_dim_intlist(-1, false, Kind::Float)?;
    assert!(max_abs_diff(&sums, &sums.f_ones_like()?)? < 1e-6);
    assert_eq!(
        pattern.f_triu(1)?.f_abs()?.f_max()?.f_double_value(&[])?,
        0.0
    );
    Ok(())
}

/// Rows of different lengths, padded on either side, against each row alone; also with the
/// explicit attention pattern.
#[test]
fn padded_rows_equal_rows_alone() -> Result<()> {
    let rows: [&[i64]; 3] = [&[5, 17, 23, 42, 8, 77, 1], &[90, 2, 31], &[44]];
    let width = 7;
    for name in ["parallel", "sequential", "full-rotary"] {
        let model = variant(name)?;
        for left in [true, false] {
            let (mut tokens, mut mask) = (Vec::new(), Vec::new());
            for row in rows {
                let (pad, ones) = (vec![0; width - row.len()], vec![1; row.len()]);
                let zeros = pad.clone();
                let parts = if left {
                    [&pad[..], row]
                } else {
                    [row, &pad[..]]
                };
                tokens.extend(parts.concat());
                let parts = if left { [zeros, ones] } else { [ones, zeros] };
                mask.extend(parts.concat());
            }
            let shape = [rows.len() as i64, width as i64];
            let tokens = Tensor::from_slice::<i64>(&tokens).view(shape);
            let mask = Tensor::from_slice::<i64>(&mask).view(shape);
            let fused = model.forward(&tokens, Some(&mask), &mut NoHooks)?;
            let mut observe = At {
                site: Site::Pattern(0),
                change: Ok,
                calls: 0,
            };
            let explicit = model.forward(&tokens, Some(&mask), &mut observe)?;
            assert_eq!(observe.calls, 1);
            for batch in [fused, explicit] {
                assert_eq!(
                    batch.f_isfinite()?.f_all()?.f_int64_value(&[])?,
                    1,
                    "{name}"
                );
                for (index, row) in rows.iter().enumerate() {
                    let alone = Tensor::from_slice(row).view([1, -1]);
                    let alone = model.forward(&alone, None, &mut NoHooks)?;
                    let start = if left { width - row.len() } else { 0 };
                    let padded = batch.f_narrow(0, index as i64, 1)?.f_narrow(
                        1,
                        start as i64,
                        row.len() as i64,
                    )?;
                    let worst = max_abs_diff(&padded, &alone)?;
                    assert!(
                        worst < 1e-5,
                        "{name}, left {left}, row {index}: {worst:.1e}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_hook_that_changes_the_shape_is_an_error() -> Result<()> {
    let model = variant("parallel")?;
    let mut hook = At {
        site: Site::MlpPost(0),
        change: |value: Tensor| value.f_narrow(1, 0, 1),
        calls: 0,
    };
    let err = model
        .forward(&tokens(), None, &mut hook)
        .err()
        .ok_or("accepted")?;
    assert_eq!(
        err.to_string(),
        "hook at `blocks.0.mlp.post` returned shape [2, 1, 64] of Float, expected [2, 5, 64] of Float"
    );
    assert!(matches!(err, ForwardError::Hook { .. }));
    Ok(())
}

/// A row with branches gives each text what it gives alone.
#[test]
fn branches_are_texts_of_their_own() -> Result<()> {
    let model = variant("parallel")?;
    let row = Tensor::from_slice(&[3i64, 14, 15, 92, 65, 35, 89, 7, 1]).view([1, 9]);
    let branch = |start, shared| Branch { start, shared };
    let branches = [vec![branch(5, 3), branch(7, 4)]];
    let together = model.residual_branched(&row, &branches, &mut NoHooks)?;
    for (text, places) in [
        (vec![3i64, 14, 15, 92, 65], vec![0i64, 1, 2, 3, 4]),
        (vec![3, 14, 15, 35, 89], vec![0, 1, 2, 5, 6]),
        (vec![3, 14, 15, 92, 7, 1], vec![0, 1, 2, 3, 7, 8]),
    ] {
        let alone = Tensor::from_slice(&text).view([1, -1]);
        let alone = model.residual(&alone, None, &mut NoHooks)?;
        let places = Tensor::from_slice(&places);
        assert!(max_abs_diff(&together.f_index_select(1, &places)?, &alone)? < 1e-5);
    }
    for bad in [branch(9, 1), branch(0, 0), branch(4, 5)] {
        let error = model.residual_branched(&row, &[vec![bad]], &mut NoHooks);
        assert!(matches!(error, Err(ForwardError::Branch { .. })), "{bad:?}");
    }
    let error = model.residual_branched(&row, &[], &mut NoHooks);
    assert!(matches!(
        error,
        Err(ForwardError::BranchRows {
            expected: 1,
            found: 0
        })
    ));
    Ok(())
}

/// Rows that are asked for have the values that they have among all, with branches and without.
#[test]
fn some_rows_equal_the_same_rows_of_all() -> Result<()> {
    for name in ["parallel", "sequential"] {
        let model = variant(name)?;
        let rows = Tensor::from_slice(&[1i64, 4, 9]);
        let flat = |resid: Tensor| -> Result<Tensor> {
            Ok(resid.f_flatten(0, 1)?.f_index_select(0, &rows)?)
        };
        let all = flat(model.residual(&tokens(), None, &mut NoHooks)?)?;
        let some = model.residual_rows(&tokens(), None, &rows, &mut NoHooks)?;
        assert!(max_abs_diff(&some, &all)? < 1e-5);
        let branch = Branch {
            start: 3,
            shared: 2,
        };
        let branches = [vec![branch], vec![branch]];
        let all = flat(model.residual_branched(&tokens(), &branches, &mut NoHooks)?)?;
        let some = model.residual_rows(&tokens(), Some(&branches), &rows, &mut NoHooks)?;
        assert!(max_abs_diff(&some, &all)? < 1e-5);
    }
    Ok(())
}

/// What goes wrong in a hook comes out as it went in, with its place.
#[test]
fn a_hook_may_fail_in_its_own_words() -> Result<()> {
    struct Refuses;

    impl Hooks for Refuses {
        fn wants(&self, site: Site) -> bool {
            site == Site::MlpPre(1)
        }

        fn at(&mut self, _: Site, _: Tensor) -> std::result::Result<Tensor, HookError> {
            Err("no neuron 7".into())
        }
    }

    let error = variant("parallel")?
        .forward(&tokens(), None, &mut Refuses)
        .unwrap_err();
    assert_eq!(error.to_string(), "the hook at `blocks.1.mlp.pre` failed");
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(source.as_deref(), Some("no neuron 7"));
    Ok(())
}
