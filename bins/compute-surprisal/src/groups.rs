//! Groups of words: along the frequency of the word, or by the band of its tokens.

use std::collections::{BTreeMap, HashMap};

use anyhow::bail;
use job_inputs::Vocabulary;
use job_kit::RunRecord;
use neox_core::Text;
use neuron_ablate::WordRequest;
use text_inputs::Norms;

use crate::config::{GroupBy, GroupsConfig, SurprisalConfig};
use crate::words::{Pair, Words};

/// One group of all words.
pub(crate) const ALL_WORDS: &str = "all words";
/// Groups by tokens: words with a piece in the band, and the others.
pub(crate) const LONG_TAIL_TOKENS: &str = "long-tail tokens";
pub(crate) const COMMON_TOKENS: &str = "common tokens";
/// Words whose frequency nothing says, where the others are grouped by theirs.
const NO_FREQUENCY: &str = "no frequency";

/// Most groups by frequency.
pub(crate) const MOST_GROUPS: usize = 12;

/// Sorts the words into groups, and counts them.
pub(crate) fn group(
    mut pairs: Vec<Pair>,
    requests: &[WordRequest],
    config: &SurprisalConfig,
    text: &Text,
    d_vocab: usize,
    record: &mut RunRecord,
) -> anyhow::Result<Words> {
    let groups = &config.groups;
    if let Some(norms) = &config.norms {
        let found = Norms::read(norms)?;
        record.input(&norms.path)?;
        for pair in &mut pairs {
            pair.zipf = found.zipf(&pair.word);
        }
    }
    let long_tail = long_tail(&pairs, requests, config, text, d_vocab, record)?;
    let known = pairs.iter().any(|pair| pair.zipf.is_some());
    let by = match groups.by {
        GroupBy::Auto
            if known
                || config.norms.is_some()
                || groups.zipf.is_some()
                || groups.quantiles.is_some() =>
        {
            GroupBy::WordFrequency
        }
        GroupBy::Auto if long_tail.is_some() => GroupBy::TokenBand,
        GroupBy::Auto => GroupBy::None,
        by => by,
    };
    let (group, names) = match (by, &long_tail) {
        (GroupBy::WordFrequency, _) if !known => bail!(
            "`groups.by` is word-frequency, but no word has a frequency: `{}` has no column `zipf` (prepare-context takes it over from the words of select-longtail), and `norms.path` names no table of frequencies that has one of them",
            config.words.path.display()
        ),
        (GroupBy::WordFrequency, _) => by_frequency(&pairs, groups)?,
        (GroupBy::TokenBand, Some(long_tail)) => (
            long_tail.iter().map(|&rare| usize::from(!rare)).collect(),
            vec![LONG_TAIL_TOKENS.into(), COMMON_TOKENS.into()],
        ),
        (GroupBy::TokenBand, None) => bail!(
            "`groups.by` is token-band, but there is no band: set `band` (such as `band=tail`) and `frequency`"
        ),
        (GroupBy::None | GroupBy::Auto, _) => (vec![0; pairs.len()], vec![ALL_WORDS.into()]),
    };
    let mut sizes = vec![0u64; names.len()];
    let by_word: BTreeMap<&str, usize> = pairs
        .iter()
        .zip(&group)
        .map(|(pair, &group)| (pair.word.as_str(), group))
        .collect();
    by_word.values().for_each(|&group| sizes[group] += 1);
    let sizes: serde_json::Map<_, _> = names
        .iter()
        .cloned()
        .zip(sizes.into_iter().map(Into::into))
        .collect();
    record.note("groups", serde_json::json!({"by": by, "words": sizes}));
    let words: HashMap<&str, Option<f64>> = pairs
        .iter()
        .map(|pair| (pair.word.as_str(), pair.zipf))
        .collect();
    let without = words.values().filter(|zipf| zipf.is_none()).count();
    record.count("words_without_a_frequency", without as u64);
    Ok(Words {
        group,
        pairs,
        groups: names,
        by,
        long_tail,
    })
}

/// Bands of the Zipf scale, or quantiles of the words; words of one frequency stay together.
fn by_frequency(
    pairs: &[Pair],
    config: &GroupsConfig,
) -> anyhow::Result<(Vec<usize>, Vec<String>)> {
    let by_word: BTreeMap<&str, f64> = pairs
        .iter()
        .filter_map(|pair| Some((pair.word.as_str(), pair.zipf?)))
        .collect();
    let mut values: Vec<f64> = by_word.into_values().collect();
    values.sort_unstable_by(f64::total_cmp);
    let (Some(&lowest), Some(&highest)) = (values.first(), values.last()) else {
        bail!("no word has a frequency");
    };
    let bounds: Vec<f64> = match (&config.zipf, config.quantiles) {
        (Some(bounds), _) => {
            let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
            if bounds.is_empty() || !ascending || bounds.len() >= MOST_GROUPS {
                bail!(
                    "`groups.zipf` is {bounds:?}, expected 1 to {} Zipf values in ascending order, such as [3, 4, 5]",
                    MOST_GROUPS - 1
                );
            }
            bounds.clone()
        }
        (None, Some(n)) => {
            if !(2..=MOST_GROUPS).contains(&n) {
                bail!("`groups.quantiles` is {n}, expected 2 to {MOST_GROUPS}");
            }
            // Words of one frequency stay together, so that there may be fewer parts.
            let mut bounds: Vec<f64> = (1..n).map(|i| values[i * values.len() / n]).collect();
            bounds.dedup();
            bounds.retain(|&bound| bound > lowest);
            bounds
        }
        // Whole Zipf values, as far as there are words.
        (None, None) => {
            let (first, last) = (lowest.floor() as i64 + 1, highest.floor() as i64);
            let last = last.min(first + MOST_GROUPS as i64 - 2);
            (first..=last).map(|bound| bound as f64).collect()
        }
    };
    let place = |zipf: f64| bounds.partition_point(|&bound| bound <= zipf);
    let of_pair: Vec<usize> = pairs
        .iter()
        .map(|pair| pair.zipf.map_or(bounds.len() + 1, place))
        .collect();
    let mut names: Vec<(usize, String)> = Vec::new();
    for i in 0..=bounds.len() {
        let (lower, upper) = (i.checked_sub(1).map(|i| bounds[i]), bounds.get(i).copied());
        let mut found = values.iter().filter(|&&zipf| place(zipf) == i);
        let (Some(from), Some(to)) = (found.clone().next(), found.next_back()) else {
            continue; // no word
        };
        let name = match (config.quantiles, lower, upper) {
            (Some(_), _, _) => format!(
                "part {} of {} (Zipf {from:.2} to {to:.2})",
                i + 1,
                bounds.len() + 1
            ),
            (None, None, Some(upper)) if config.zipf.is_none() => {
                format!("Zipf {} to {upper}", upper - 1.0)
            }
            (None, Some(lower), None) if config.zipf.is_none() => {
                format!("Zipf {lower} to {}", lower + 1.0)
            }
            (None, None, None) => format!("Zipf {} to {}", lowest.floor(), lowest.floor() + 1.0),
            (None, None, Some(upper)) => format!("Zipf below {upper}"),
            (None, Some(lower), None) => format!("Zipf {lower} and above"),
            (None, Some(lower), Some(upper)) => format!("Zipf {lower} to {upper}"),
        };
        names.push((i, name));
    }
    if of_pair.contains(&(bounds.len() + 1)) {
        names.push((bounds.len() + 1, NO_FREQUENCY.into()));
    }
    let index: HashMap<usize, usize> = names
        .iter()
        .enumerate()
        .map(|(at, (place, _))| (*place, at))
        .collect();
    Ok((
        of_pair.iter().map(|place| index[place]).collect(),
        names.into_iter().map(|(_, name)| name).collect(),
    ))
}

/// Which pairs are of words with a piece in the band; none without a band.
fn long_tail(
    pairs: &[Pair],
    requests: &[WordRequest],
    config: &SurprisalConfig,
    text: &Text,
    d_vocab: usize,
    record: &mut RunRecord,
) -> anyhow::Result<Option<Vec<bool>>> {
    let Some((band, frequency)) = config.banded() else {
        return Ok(None);
    };
    let found = Vocabulary::read(
        frequency,
        Some(band),
        band.reading.unwrap_or_default(),
        d_vocab,
        Some(text.n_tokens()),
        record,
    )?;
    let mut in_band = vec![false; d_vocab];
    for id in found.band.into_iter().flat_map(|band| band.ids) {
        if let Some(slot) = in_band.get_mut(id as usize) {
            *slot = true;
        }
    }
    // One word, one group, whatever its pieces in single contexts: those of its first context decide.
    let mut by_word: BTreeMap<&str, bool> = BTreeMap::new();
    let mut long_tail = Vec::with_capacity(pairs.len());
    for (pair, request) in pairs.iter().zip(requests) {
        let rare = request.tokens[request.word.clone()]
            .iter()
            .any(|&id| usize::try_from(id).is_ok_and(|id| in_band.get(id) == Some(&true)));
        long_tail.push(*by_word.entry(&pair.word).or_insert(rare));
    }
    let rare = by_word.values().filter(|rare| **rare).count() as u64;
    record.count("words_with_a_long_tail_token", rare);
    record.count("words_of_common_tokens", by_word.len() as u64 - rare);
    Ok(Some(long_tail))
}
