//! From rows of an ablation table to means per neuron.

use std::collections::HashMap;

use serde::Serialize;
use surprisal_metrics::{Group, mediated_share};

use crate::{NeuronId, Push, RowFilter, SelectError, Stratum};

/// One row of an ablation table: one neuron at one position. Changes are `ablated - clean`, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The ablated neuron.
    pub neuron: NeuronId,
    /// The sequence that the position is in: the unit that is resampled.
    pub sequence: i64,
    /// Frequency stratum of the row.
    pub stratum: Stratum,
    /// Change of the loss.
    pub loss_change: f64,
    /// Change of the loss with the frequency projection frozen.
    pub frozen_loss_change: f64,
    /// Change of the loss with the scale of the final norm frozen, where it was measured.
    pub frozen_ln_loss_change: Option<f64>,
    /// Change of the loss with the frequency direction of all tokens frozen, where it was measured.
    pub frozen_all_loss_change: Option<f64>,
    /// Change of the divergence from the token frequencies.
    pub kl_change: f64,
    /// Activation of the neuron.
    pub activation: f64,
    /// Change of the activation by the intervention, where it is known.
    pub activation_change: Option<f64>,
    /// Loss of the unchanged model, nats.
    pub clean_loss: f64,
}

/// What the weights of a neuron say about it, as far as it is known (methods, section 12).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Weights {
    /// Norm of the output weights as the final norm sees them.
    pub norm: Option<f64>,
    /// Variance over the vocabulary of the cosine of the output weights with the rows of the unembedding.
    pub logit_var: Option<f64>,
    /// Share of the squared norm of the output weights in the null space of the unembedding: the square of rho.
    pub null_share: Option<f64>,
}

/// Which effect of [`NeuronEffects`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// [`NeuronEffects::loss_change`]
    LossChange,
    /// [`NeuronEffects::total_effect`]
    TotalEffect,
    /// [`NeuronEffects::frozen_loss_change`]
    FrozenLossChange,
    /// [`NeuronEffects::direct_effect`]
    DirectEffect,
    /// [`NeuronEffects::frozen_ln_effect`]
    FrozenLnEffect,
    /// [`NeuronEffects::frozen_all_effect`]
    FrozenAllEffect,
    /// [`NeuronEffects::kl_change`]
    KlChange,
    /// [`NeuronEffects::kl_abs_change`]
    KlAbsChange,
}

/// Sums over rows of one neuron, sequence and stratum: all that is needed of the rows. Changes are `ablated - clean`, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowSums {
    /// How many rows; a whole number, as all counts.
    pub rows: f64,
    /// Changes of the loss.
    pub loss_change: f64,
    /// Their absolute values.
    pub loss_abs_change: f64,
    /// Changes of the loss with the frequency projection frozen.
    pub frozen_loss_change: f64,
    /// Their absolute values.
    pub frozen_loss_abs_change: f64,
    /// Absolute changes of the loss with the scale of the final norm frozen.
    pub frozen_ln_loss_abs_change: f64,
    /// Rows that say the loss with the final norm frozen.
    pub frozen_ln_rows: f64,
    /// Absolute changes of the loss with the frequency direction of all tokens frozen.
    pub frozen_all_loss_abs_change: f64,
    /// Rows that say the loss with that direction frozen.
    pub frozen_all_rows: f64,
    /// Changes of the divergence from the token frequencies.
    pub kl_change: f64,
    /// Their absolute values.
    pub kl_abs_change: f64,
    /// Activations.
    pub activation: f64,
    /// Squares of the changes of the activation.
    pub activation_change_squared: f64,
    /// Rows that say the change of the activation.
    pub activation_change_rows: f64,
    /// Rows with an activation above zero.
    pub active_rows: f64,
    /// Clean losses of those rows.
    pub active_loss: f64,
}

/// The column of a sum in tables, and the sum.
pub type SumColumn = (&'static str, fn(&mut RowSums) -> &mut f64);

impl RowSums {
    /// The name of a table of sums: a row per neuron, cluster and stratum that has rows.
    pub const FILE: &str = "sums.parquet";
    /// The column of the cluster where documents are known: the document's row in the corpus.
    pub const DOCUMENT: &str = "document";
    /// The column of the cluster where they are not: the sequence.
    pub const SEQUENCE: &str = "batch";
    /// The column of the stratum, by its name.
    pub const STRATUM: &str = "stratum";
    /// The column of how many rows there are.
    pub const ROWS: &str = "rows";
    /// The columns of the sums. Those of [`RowSums::FROZEN`] are there where they were measured.
    pub const COLUMNS: [SumColumn; 12] = [
        ("loss_change", |s| &mut s.loss_change),
        ("loss_abs_change", |s| &mut s.loss_abs_change),
        ("frozen_loss_change", |s| &mut s.frozen_loss_change),
        ("frozen_loss_abs_change", |s| &mut s.frozen_loss_abs_change),
        (Self::FROZEN[0], |s| &mut s.frozen_ln_loss_abs_change),
        (Self::FROZEN[1], |s| &mut s.frozen_all_loss_abs_change),
        ("kl_change", |s| &mut s.kl_change),
        ("kl_abs_change", |s| &mut s.kl_abs_change),
        ("activation", |s| &mut s.activation),
        ("activation_change_squared", |s| {
            &mut s.activation_change_squared
        }),
        ("active_rows", |s| &mut s.active_rows),
        ("active_loss", |s| &mut s.active_loss),
    ];
    /// With the scale of the final norm frozen, and with the frequency direction of all tokens.
    pub const FROZEN: [&str; 2] = ["frozen_ln_loss_abs_change", "frozen_all_loss_abs_change"];

    /// The sums of a single row.
    pub fn of_row(row: &Row) -> Self {
        let active = truth(row.activation > 0.0);
        Self {
            rows: 1.0,
            loss_change: row.loss_change,
            loss_abs_change: row.loss_change.abs(),
            frozen_loss_change: row.frozen_loss_change,
            frozen_loss_abs_change: row.frozen_loss_change.abs(),
            frozen_ln_loss_abs_change: row.frozen_ln_loss_change.map_or(0.0, f64::abs),
            frozen_ln_rows: truth(row.frozen_ln_loss_change.is_some()),
            frozen_all_loss_abs_change: row.frozen_all_loss_change.map_or(0.0, f64::abs),
            frozen_all_rows: truth(row.frozen_all_loss_change.is_some()),
            kl_change: row.kl_change,
            kl_abs_change: row.kl_change.abs(),
            activation: row.activation,
            activation_change_squared: row.activation_change.map_or(0.0, |change| change * change),
            activation_change_rows: truth(row.activation_change.is_some()),
            active_rows: active,
            active_loss: active * row.clean_loss,
        }
    }

    fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.loss_change += other.loss_change;
        self.loss_abs_change += other.loss_abs_change;
        self.frozen_loss_change += other.frozen_loss_change;
        self.frozen_loss_abs_change += other.frozen_loss_abs_change;
        self.frozen_ln_loss_abs_change += other.frozen_ln_loss_abs_change;
        self.frozen_ln_rows += other.frozen_ln_rows;
        self.frozen_all_loss_abs_change += other.frozen_all_loss_abs_change;
        self.frozen_all_rows += other.frozen_all_rows;
        self.kl_change += other.kl_change;
        self.kl_abs_change += other.kl_abs_change;
        self.activation += other.activation;
        self.activation_change_squared += other.activation_change_squared;
        self.activation_change_rows += other.activation_change_rows;
        self.active_rows += other.active_rows;
        self.active_loss += other.active_loss;
    }

    /// The first value that is not finite, and what it is of.
    fn not_finite(&self) -> Option<(&'static str, f64)> {
        [
            ("the rows", self.rows),
            ("the loss change", self.loss_change),
            ("the loss change", self.loss_abs_change),
            (
                "the loss change with frozen frequency",
                self.frozen_loss_change,
            ),
            (
                "the loss change with frozen frequency",
                self.frozen_loss_abs_change,
            ),
            (
                "the loss change with frozen final norm",
                self.frozen_ln_loss_abs_change,
            ),
            (
                "the loss change with frozen frequency of all tokens",
                self.frozen_all_loss_abs_change,
            ),
            ("the divergence change", self.kl_change),
            ("the divergence change", self.kl_abs_change),
            ("the activation", self.activation),
            (
                "the change of the activation",
                self.activation_change_squared,
            ),
            ("the clean loss", self.active_loss),
        ]
        .into_iter()
        .find(|(_, value)| !value.is_finite())
    }

    fn of(&self, measure: Measure) -> f64 {
        match measure {
            Measure::LossChange => self.loss_change,
            Measure::TotalEffect => self.loss_abs_change,
            Measure::FrozenLossChange => self.frozen_loss_change,
            Measure::DirectEffect => self.frozen_loss_abs_change,
            Measure::FrozenLnEffect => self.frozen_ln_loss_abs_change,
            Measure::FrozenAllEffect => self.frozen_all_loss_abs_change,
            Measure::KlChange => self.kl_change,
            Measure::KlAbsChange => self.kl_abs_change,
        }
    }

    fn means(&self, neuron: NeuronId, weights: Weights) -> NeuronEffects {
        NeuronEffects {
            neuron,
            rows: self.rows as usize,
            loss_change: self.loss_change / self.rows,
            total_effect: self.loss_abs_change / self.rows,
            frozen_loss_change: self.frozen_loss_change / self.rows,
            direct_effect: self.frozen_loss_abs_change / self.rows,
            frozen_ln_effect: (self.frozen_ln_rows == self.rows)
                .then(|| self.frozen_ln_loss_abs_change / self.rows),
            frozen_all_effect: (self.frozen_all_rows == self.rows)
                .then(|| self.frozen_all_loss_abs_change / self.rows),
            kl_change: self.kl_change / self.rows,
            kl_abs_change: self.kl_abs_change / self.rows,
            activation: self.activation / self.rows,
            rms_change: (self.activation_change_rows == self.rows)
                .then(|| (self.activation_change_squared / self.rows).sqrt()),
            active_share: self.active_rows / self.rows,
            active_loss: (self.active_rows > 0.0).then(|| self.active_loss / self.active_rows),
            weights,
        }
    }
}

/// Means over the rows of one neuron; changes are `ablated - clean`, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NeuronEffects {
    /// The neuron.
    pub neuron: NeuronId,
    /// Rows behind the means.
    pub rows: usize,
    /// Mean change of the loss.
    pub loss_change: f64,
    /// Mean absolute change of the loss.
    pub total_effect: f64,
    /// Mean change of the loss with the frequency projection frozen.
    pub frozen_loss_change: f64,
    /// Mean absolute change of the loss with the frequency projection frozen.
    pub direct_effect: f64,
    /// Mean absolute change of the loss with the scale of the final norm frozen; `None` where not every row says it.
    pub frozen_ln_effect: Option<f64>,
    /// Mean absolute change of the loss with the frequency direction of all tokens frozen; `None` where not every row says it.
    pub frozen_all_effect: Option<f64>,
    /// Mean change of the divergence from the token frequencies.
    pub kl_change: f64,
    /// Mean absolute change of the divergence from the token frequencies, as in figure 3b of Stolfo et al. 2024.
    pub kl_abs_change: f64,
    /// Mean activation over these rows.
    pub activation: f64,
    /// Root mean square of the change of the activation; `None` where not every row says it.
    pub rms_change: Option<f64>,
    /// Share of the rows whose activation is above zero.
    pub active_share: f64,
    /// Mean clean loss of those rows, nats; `None` without any.
    pub active_loss: Option<f64>,
    /// What its weights say.
    pub weights: Weights,
}

impl NeuronEffects {
    /// Share of the total effect that frequency mediates, `1 - direct / total`; `None` where the total effect is below `floor` or zero.
    pub fn mediated_share(&self, floor: f64) -> Option<f64> {
        self.share(self.direct_effect, floor)
    }

    /// Share of the total effect that the scale of the final norm mediates, `1 - direct / total` with that scale frozen; `None` where
    /// the total effect is below `floor` or zero, or the frozen effect was not measured.
    pub fn ln_mediated_share(&self, floor: f64) -> Option<f64> {
        self.share(self.frozen_ln_effect?, floor)
    }

    /// Share of the total effect that the frequency of all tokens mediates, `1 - direct / total` with that direction frozen; `None` where
    /// the total effect is below `floor` or zero, or the frozen effect was not measured.
    pub fn all_token_mediated_share(&self, floor: f64) -> Option<f64> {
        self.share(self.frozen_all_effect?, floor)
    }

    /// What the intervention does to the residual stream; `None` where the change of the activation or the norm of the output weights is
    /// not known.
    pub fn push(&self) -> Option<Push> {
        Some(Push {
            length: self.rms_change? * self.weights.norm?,
            active_share: self.active_share,
            active_loss: self.active_loss,
        })
    }

    fn share(&self, direct: f64, floor: f64) -> Option<f64> {
        mediated_share(self.total_effect, direct, floor)
    }
}

/// Running sums per neuron, sequence and stratum. Takes the rows of a table in any order; its size does not grow with their number.
///
/// # Examples
/// ```
/// use neuron_select::{NeuronId, Row, RowFilter, Stratum, Tally};
/// let mut tally = Tally::default();
/// for (sequence, change) in [(0, 0.2), (1, -0.4)] {
///     tally.add(&Row {
///         neuron: NeuronId { layer: 5, neuron: 10 },
///         sequence,
///         stratum: Stratum::LongTail,
///         loss_change: change,
///         frozen_loss_change: 0.0,
///         frozen_ln_loss_change: None,
///         frozen_all_loss_change: None,
///         kl_change: 0.0,
///         activation: 1.0,
///         activation_change: None,
///         clean_loss: 5.0,
///     })?;
/// }
/// let effects = tally.grouped(RowFilter::LongTail)?.effects();
/// assert!((effects[0].loss_change + 0.1).abs() < 1e-12); // nats
/// assert!((effects[0].total_effect - 0.3).abs() < 1e-12);
/// # Ok::<(), neuron_select::SelectError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tally {
    neurons: Vec<NeuronId>,
    neuron_index: HashMap<NeuronId, usize>,
    sequences: Vec<i64>,
    sequence_index: HashMap<i64, usize>,
    /// `[neuron][sequence][stratum]`
    sums: Vec<Vec<[RowSums; 3]>>,
    rows: usize,
    weights: HashMap<NeuronId, Weights>,
}

impl Tally {
    /// Adds a row.
    ///
    /// # Errors
    /// - [`SelectError::NotFinite`] for a value that is NaN or infinite
    pub fn add(&mut self, row: &Row) -> Result<(), SelectError> {
        let values = [
            ("the loss change", row.loss_change),
            (
                "the loss change with frozen frequency",
                row.frozen_loss_change,
            ),
            (
                "the loss change with frozen final norm",
                row.frozen_ln_loss_change.unwrap_or(0.0),
            ),
            (
                "the loss change with frozen frequency of all tokens",
                row.frozen_all_loss_change.unwrap_or(0.0),
            ),
            ("the divergence change", row.kl_change),
            ("the activation", row.activation),
            (
                "the change of the activation",
                row.activation_change.unwrap_or(0.0),
            ),
            ("the clean loss", row.clean_loss),
        ];
        if let Some((what, value)) = values.into_iter().find(|(_, v)| !v.is_finite()) {
            return Err(SelectError::NotFinite {
                neuron: row.neuron,
                sequence: row.sequence,
                what,
                value,
            });
        }
        self.place(row.neuron, row.sequence, row.stratum)
            .add(&RowSums::of_row(row));
        self.rows += 1;
        Ok(())
    }

    /// Adds the sums of several rows, such as [`Self::sums`] gives.
    ///
    /// # Errors
    /// - [`SelectError::NotFinite`] for a value that is NaN or infinite
    pub fn add_sums(
        &mut self,
        neuron: NeuronId,
        sequence: i64,
        stratum: Stratum,
        sums: &RowSums,
    ) -> Result<(), SelectError> {
        if let Some((what, value)) = sums.not_finite() {
            return Err(SelectError::NotFinite {
                neuron,
                sequence,
                what,
                value,
            });
        }
        self.place(neuron, sequence, stratum).add(sums);
        self.rows += sums.rows as usize;
        Ok(())
    }

    /// The sums of what has rows: neurons and sequences in the order in which they were added, so that a tally of them is the same to the
    /// last bit.
    pub fn sums(&self) -> impl Iterator<Item = (NeuronId, i64, Stratum, &RowSums)> {
        self.neurons.iter().zip(&self.sums).flat_map(|(id, of)| {
            let of_sequences = self.sequences.iter().zip(of);
            of_sequences.flat_map(|(sequence, strata)| {
                let of_strata = Stratum::ALL.into_iter().zip(strata);
                let kept = of_strata.filter(|(_, sums)| sums.rows > 0.0);
                kept.map(|(stratum, sums)| (*id, *sequence, stratum, sums))
            })
        })
    }

    fn place(&mut self, neuron: NeuronId, sequence: i64, stratum: Stratum) -> &mut RowSums {
        let n = *self.neuron_index.entry(neuron).or_insert_with(|| {
            self.neurons.push(neuron);
            self.sums.push(Vec::new());
            self.neurons.len() - 1
        });
        let s = *self.sequence_index.entry(sequence).or_insert_with(|| {
            self.sequences.push(sequence);
            self.sequences.len() - 1
        });
        let sequences = &mut self.sums[n];
        if sequences.len() <= s {
            sequences.resize(s + 1, Default::default());
        }
        &mut sequences[s][stratum as usize]
    }

    /// What the weights say about the neurons; it passes on into their [`NeuronEffects`].
    pub fn set_weights(&mut self, weights: HashMap<NeuronId, Weights>) {
        self.weights = weights;
    }

    /// Rows added so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of neurons seen.
    pub fn n_neurons(&self) -> usize {
        self.neurons.len()
    }

    /// Number of sequences seen.
    pub fn n_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The sums of the rows that a filter keeps, neurons in ascending order.
    ///
    /// # Errors
    /// - [`SelectError::NoRows`] if the filter keeps nothing
    /// - [`SelectError::NeuronWithoutRows`] if it keeps rows of some neurons only
    pub fn grouped(&self, rows: RowFilter) -> Result<Grouped, SelectError> {
        let mut order: Vec<usize> = (0..self.neurons.len()).collect();
        order.sort_unstable_by_key(|&n| self.neurons[n]);
        let n_sequences = self.sequences.len();
        let mut sums = vec![RowSums::default(); order.len() * n_sequences];
        for (&n, out) in order.iter().zip(sums.chunks_mut(n_sequences.max(1))) {
            for (strata, out) in self.sums[n].iter().zip(out) {
                rows.keeps()
                    .iter()
                    .for_each(|&stratum| out.add(&strata[stratum as usize]));
            }
        }
        let neurons: Vec<NeuronId> = order.iter().map(|&n| self.neurons[n]).collect();
        let of = |id: &NeuronId| self.weights.get(id).copied().unwrap_or_default();
        let grouped = Grouped {
            weights: neurons.iter().map(of).collect(),
            neurons,
            n_sequences,
            sequences: self.sequences.clone(),
            sums,
        };
        let counts: Vec<f64> = (0..grouped.neurons.len())
            .map(|n| grouped.of(n).iter().map(|s| s.rows).sum())
            .collect();
        if counts.iter().all(|&rows| rows == 0.0) {
            return Err(SelectError::NoRows {
                rows,
                total: self.rows,
            });
        }
        match counts.iter().position(|&rows| rows == 0.0) {
            Some(n) => Err(SelectError::NeuronWithoutRows {
                neuron: grouped.neurons[n],
                rows,
            }),
            None => Ok(grouped),
        }
    }
}

/// Sums per neuron and sequence, ready to be averaged over all sequences or over a resample of them.
#[derive(Debug, Clone)]
pub struct Grouped {
    neurons: Vec<NeuronId>,
    /// In the order of the neurons.
    weights: Vec<Weights>,
    n_sequences: usize,
    /// Their names in the table.
    sequences: Vec<i64>,
    /// `[neuron * n_sequences + sequence]`
    sums: Vec<RowSums>,
}

impl Grouped {
    /// The neurons, ascending.
    pub fn neurons(&self) -> &[NeuronId] {
        &self.neurons
    }

    /// How many sequences there are.
    pub fn n_sequences(&self) -> usize {
        self.n_sequences
    }

    /// The sequences by their names in the table, in the order of [`Self::groups`].
    pub fn sequences(&self) -> &[i64] {
        &self.sequences
    }

    /// How many sequences have rows: intervals over sequences need [`MIN_GROUPS`](surprisal_metrics::MIN_GROUPS).
    pub fn n_sequences_with_rows(&self) -> usize {
        self.sequences_with_rows().len()
    }

    /// Indices of the sequences that have rows.
    pub(crate) fn sequences_with_rows(&self) -> Vec<usize> {
        let has_rows = |s: &usize| (0..self.neurons.len()).any(|n| self.of(n)[*s].rows > 0.0);
        (0..self.n_sequences).filter(has_rows).collect()
    }

    /// The neurons with more or fewer rows than the first, as a cut-off or doubled table has: their means are not comparable.
    pub fn unbalanced(&self) -> Vec<NeuronId> {
        let rows = |n: usize| self.of(n).iter().map(|s| s.rows).sum::<f64>();
        (1..self.neurons.len())
            .filter(|&n| rows(n) != rows(0))
            .map(|n| self.neurons[n])
            .collect()
    }

    /// Means over all sequences, neurons ascending.
    pub fn effects(&self) -> Vec<NeuronEffects> {
        let all: Vec<usize> = (0..self.n_sequences).collect();
        self.resampled(&all).unwrap_or_default()
    }

    /// Means over the drawn sequences, repeated ones repeated; `None` if a neuron has no row in them.
    pub fn resampled(&self, draw: &[usize]) -> Option<Vec<NeuronEffects>> {
        (0..self.neurons.len())
            .map(|n| self.mean(n, draw))
            .collect()
    }

    /// Sums and numbers of the rows of some neurons in each sequence: the groups that intervals resample. Neurons that the table has not
    /// are passed over, repeated ones count repeatedly.
    pub fn groups(&self, neurons: &[NeuronId], measure: Measure) -> Vec<Group> {
        let mut groups = vec![Group::default(); self.n_sequences];
        for n in neurons
            .iter()
            .filter_map(|n| self.neurons.binary_search(n).ok())
        {
            for (group, sums) in groups.iter_mut().zip(self.of(n)) {
                group.sum += sums.of(measure);
                group.count += sums.rows;
            }
        }
        groups
    }

    fn mean(&self, n: usize, draw: &[usize]) -> Option<NeuronEffects> {
        let sequences = self.of(n);
        let mut total = RowSums::default();
        draw.iter().for_each(|&s| total.add(&sequences[s]));
        (total.rows > 0.0).then(|| total.means(self.neurons[n], self.weights[n]))
    }

    fn of(&self, n: usize) -> &[RowSums] {
        &self.sums[n * self.n_sequences..(n + 1) * self.n_sequences]
    }
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}
