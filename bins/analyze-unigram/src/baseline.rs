//! Shares at random weights, which shares of trained weights are read beside: the published one is high at step 0 already.

use std::collections::HashMap;

use neuron_select::{NeuronId, Ranked, Ranking};

/// Which share of the total effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Through the frequency direction that the reading freezes.
    Frequency,
    /// Through that of all tokens.
    AllTokens,
    /// Through the scale of the final norm.
    FinalNorm,
}

impl Share {
    pub(crate) const ALL: [Self; 3] = [Self::Frequency, Self::AllTokens, Self::FinalNorm];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Frequency => "token frequency, as the reading freezes it",
            Self::AllTokens => "frequency of all tokens",
            Self::FinalNorm => "scale of the final norm",
        }
    }

    /// Of a neuron, where it is known; `direct` says whether shares of the frozen direction are of the band that files the rows.
    pub(crate) fn of(self, direct: bool, ranked: &Ranked) -> Option<f64> {
        match self {
            Self::Frequency => ranked.mediated_share.filter(|_| direct),
            Self::AllTokens => ranked.all_token_mediated_share,
            Self::FinalNorm => ranked.ln_mediated_share,
        }
    }

    /// Median over neurons of a step; none where no neuron has the share.
    pub(crate) fn median<'a>(
        self,
        direct: bool,
        neurons: impl Iterator<Item = &'a Ranked>,
    ) -> Option<f64> {
        let mut values: Vec<f64> = neurons.filter_map(|n| self.of(direct, n)).collect();
        values.sort_unstable_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        Some((values[last / 2] + values[last.div_ceil(2)]) / 2.0)
    }
}

/// The shares at step 0.
#[derive(Debug)]
pub(crate) struct Baseline {
    shares: HashMap<NeuronId, [Option<f64>; 3]>,
    medians: [Option<f64>; 3],
}

impl Baseline {
    /// Of the ranking at step 0; `direct` as in [`Share::of`].
    pub(crate) fn of(direct: bool, ranking: &Ranking) -> Self {
        let all = || ranking.all().iter();
        let shares = |n: &Ranked| {
            (
                n.effects.neuron,
                Share::ALL.map(|share| share.of(direct, n)),
            )
        };
        Self {
            shares: all().map(shares).collect(),
            medians: Share::ALL.map(|share| share.median(direct, all())),
        }
    }

    /// The medians, to read shares beside; nothing where there are none.
    pub(crate) fn in_words(&self) -> String {
        let medians = Share::ALL.into_iter().filter_map(|share| {
            let median = self.median(share)?;
            Some(format!("{} {:.1} %", share.name(), 100.0 * median))
        });
        let medians: Vec<String> = medians.collect();
        match medians.is_empty() {
            true => String::new(),
            false => format!(
                "median shares of all neurons at step 0, random weights: {}; ",
                medians.join(", ")
            ),
        }
    }

    /// Of a neuron.
    pub(crate) fn share(&self, share: Share, neuron: NeuronId) -> Option<f64> {
        self.shares.get(&neuron)?[share as usize]
    }

    /// Median over all neurons.
    pub(crate) fn median(&self, share: Share) -> Option<f64> {
        self.medians[share as usize]
    }
}
