//! Shares at random weights, which shares of trained weights are read beside: the published one is high at step 0 already.

use std::{collections::HashMap, sync::Arc};

use neuron_select::{NeuronId, Ranked};

use crate::analysis::StepAnalysis;

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

    /// Of a neuron at a step, where it is known.
    pub(crate) fn of(self, step: &StepAnalysis, ranked: &Ranked) -> Option<f64> {
        match self {
            Self::Frequency => step.direct(ranked.mediated_share),
            Self::AllTokens => ranked.all_token_mediated_share,
            Self::FinalNorm => ranked.ln_mediated_share,
        }
    }

    /// Median over neurons of a step; none where no neuron has the share.
    pub(crate) fn median<'a>(
        self,
        step: &StepAnalysis,
        neurons: impl Iterator<Item = &'a Ranked>,
    ) -> Option<f64> {
        let mut values: Vec<f64> = neurons.filter_map(|n| self.of(step, n)).collect();
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
    /// Of the step 0 among these, if it is.
    pub(crate) fn of(steps: &[StepAnalysis]) -> Option<Arc<Self>> {
        let step = steps.iter().find(|step| step.step == 0)?;
        let all = || step.ranking.all().iter();
        let shares = |n: &Ranked| (n.effects.neuron, Share::ALL.map(|share| share.of(step, n)));
        Some(Arc::new(Self {
            shares: all().map(shares).collect(),
            medians: Share::ALL.map(|share| share.median(step, all())),
        }))
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
