//! The keys with which a config describes rotary positions, in all styles.

use crate::architecture::{Positions, RopeScaling};
use crate::error::ConfigError;
use crate::keys::Keys;

/// What a rotary embedding may say; other keys of it belong to its scaling.
const KNOWN: [&str; 4] = ["rope_type", "type", "partial_rotary_factor", "rope_theta"];

/// Share of a head that is rotated, base and scaling of the frequencies.
///
/// `rope_parameters` of transformers 5 (or `rope_scaling`, its older name) has all of it; other configs say `rope_theta` or
/// `rotary_emb_base`, and `rotary_pct` or `partial_rotary_factor`, at the top. Two keys that say different things are an error.
pub(crate) fn rotary(
    keys: &Keys<'_>,
    head_size: i64,
    default_share: f64,
) -> Result<Positions, ConfigError> {
    let mut shares = vec![
        ("rotary_pct", keys.positive("rotary_pct")?),
        (
            "partial_rotary_factor",
            keys.positive("partial_rotary_factor")?,
        ),
    ];
    let mut bases = vec![
        ("rotary_emb_base", keys.positive("rotary_emb_base")?),
        ("rope_theta", keys.positive("rope_theta")?),
    ];
    let mut scalings = Vec::new();
    for key in ["rope_scaling", "rope_parameters"] {
        if let Some(rope) = keys.object(key)? {
            shares.push((key, rope.positive("partial_rotary_factor")?));
            bases.push((key, rope.positive("rope_theta")?));
            scalings.push((key, Some(scaling(&rope)?)));
        }
    }
    let share = agreed(keys, &shares, default_share)?;
    if share > 1.0 {
        return Err(keys.bad("rotary_pct", format!("{share} is above 1")));
    }
    // transformers truncates here as well
    let dims = (head_size as f64 * share) as i64;
    if dims < 2 || dims % 2 != 0 {
        return Err(keys.bad(
            "rotary_pct",
            format!(
                "{share} of a head of {head_size} dimensions is {dims}, expected an even number from 2"
            ),
        ));
    }
    Ok(Positions::Rotary {
        dims,
        base: agreed(keys, &bases, 10_000.0)?,
        scaling: agreed(keys, &scalings, RopeScaling::None)?,
    })
}

fn scaling(rope: &Keys<'_>) -> Result<RopeScaling, ConfigError> {
    let number = |key| {
        rope.positive(key)?
            .ok_or_else(|| rope.bad(key, "missing".into()))
    };
    let mut found = None;
    for name in ["rope_type", "type"] {
        if let Some(kind) = rope.string(name)? {
            let scaling = match kind {
                "default" => RopeScaling::None,
                "linear" => RopeScaling::Linear {
                    factor: number("factor")?,
                },
                "llama3" => RopeScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_length: number("original_max_position_embeddings")?,
                },
                _ => {
                    return Err(rope.bad(
                        name,
                        format!("`{kind}` is not supported, only `default`, `linear` and `llama3`"),
                    ));
                }
            };
            found = found.or(Some(scaling));
        }
    }
    match (found, rope.other_than(&KNOWN)) {
        (Some(scaling), _) => Ok(scaling),
        (None, None) => Ok(RopeScaling::None),
        (None, Some(other)) => Err(rope.bad(
            other,
            "scaled rotary embeddings need a `rope_type`: `linear` or `llama3`".into(),
        )),
    }
}

/// What all keys that say something say.
fn agreed<T: Copy + PartialEq + std::fmt::Debug>(
    keys: &Keys<'_>,
    said: &[(&str, Option<T>)],
    default: T,
) -> Result<T, ConfigError> {
    let mut said = said
        .iter()
        .filter_map(|(key, value)| Some((key, (*value)?)));
    let Some((first, value)) = said.next() else {
        return Ok(default);
    };
    match said.find(|(_, other)| *other != value) {
        None => Ok(value),
        Some((other, found)) => Err(keys.bad(
            other,
            format!("says {found:?}, but `{first}` says {value:?}: remove one of them"),
        )),
    }
}
