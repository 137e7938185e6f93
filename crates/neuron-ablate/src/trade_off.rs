//! What scaled weights do to predictions on real text: gain on rare targets against cost on common ones.
//!
//! Every change and every factor is read off one forward per sequence. Scaled rows of `W_U` move logits in proportion to
//! `s - 1`; scaled output weights move the residual stream in proportion to it, so that only the scale of the final norm
//! is computed anew:
//!
//! ```text
//! rows of W_U       l' = l + (s - 1) D x^           x^ = output of the final LayerNorm, D = change per unit
//! output weights    l' = (g + (s - 1) u) / s' + b   u = W_U (gamma * Delta_c), Delta = sum_n a_n D_n
//! ```

use neox_core::Model;
use rayon::prelude::*;
use surprisal_metrics::Group;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    AblateError, Row, RowCounts, Sample,
    closed_form::{Projected, Unembedding},
    error::distinct,
    readout::{NormScale, Readout},
    scaling::{ScalingError, Target, WeightChange},
    states::{LastLayerStates, last_layer_states, same_length_batches, writes_directly},
};

/// What is measured of each row, in nats but for masses and hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalingMeasure {
    /// `-ln p(target)`.
    Loss,
    /// Probability of all rare tokens together.
    RareMass,
    /// 1 if no token is more probable than the target, else 0.
    Top1,
    /// 1 if fewer than five tokens are more probable than the target, else 0.
    Top5,
    /// Entropy of the prediction.
    Entropy,
    /// `KL(clean || scaled)`.
    KlCleanScaled,
    /// `KL(scaled || clean)`.
    KlScaledClean,
    /// Jensen-Shannon divergence between the two, at most `ln 2`.
    JensenShannon,
}

impl ScalingMeasure {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Loss,
        Self::RareMass,
        Self::Top1,
        Self::Top5,
        Self::Entropy,
        Self::KlCleanScaled,
        Self::KlScaledClean,
        Self::JensenShannon,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::RareMass => "rare_mass",
            Self::Top1 => "top1",
            Self::Top5 => "top5",
            Self::Entropy => "entropy",
            Self::KlCleanScaled => "kl_clean_scaled",
            Self::KlScaledClean => "kl_scaled_clean",
            Self::JensenShannon => "jensen_shannon",
        }
    }
}

/// Rows by their target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetGroup {
    /// Every row.
    All,
    /// The target is a rare token.
    Rare,
    /// The target is one of the common tokens whose span is spared.
    Common,
    /// Neither.
    Between,
}

impl TargetGroup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::All, Self::Rare, Self::Common, Self::Between];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Rare => "rare",
            Self::Common => "common",
            Self::Between => "between",
        }
    }
}

/// A named change of weights.
#[derive(Debug)]
pub struct NamedChange {
    /// The name in tables and errors.
    pub name: String,
    /// The change.
    pub change: WeightChange,
}

/// On which text, and how strongly.
#[derive(Debug, Clone)]
pub struct ScalingPlan {
    /// Sequences of the sample whose rows are measured.
    pub sequences: Vec<usize>,
    /// Factors `s`; 1 changes nothing.
    pub factors: Vec<f64>,
    /// Ids of the rare tokens.
    pub rare: Vec<u32>,
    /// Ids of the common tokens.
    pub common: Vec<u32>,
    /// Sequences per forward.
    pub batch: usize,
    /// Bytes that the vectors over the vocabulary may take, beside the weights.
    pub memory_budget: usize,
}

const MEASURES: usize = ScalingMeasure::ALL.len();
const GROUPS: usize = TargetGroup::ALL.len();

/// Sums over the rows of one sequence, by group.
#[derive(Debug, Clone, Default)]
struct Sums([GroupSums; GROUPS]);

#[derive(Debug, Clone, Copy, Default)]
struct GroupSums {
    rows: f64,
    values: [f64; MEASURES],
}

/// What was measured, kept per cluster so that intervals can be resampled.
#[derive(Debug)]
pub struct ScalingEffects {
    /// What the position filter kept and dropped.
    pub rows: RowCounts,
    /// `[cluster]`.
    clean: Vec<Sums>,
    /// `[change][factor][cluster]`.
    scaled: Vec<Vec<Vec<Sums>>>,
}

impl ScalingEffects {
    /// Number of rows in a group.
    pub fn rows_in(&self, group: TargetGroup) -> usize {
        self.clean
            .iter()
            .map(|sums| sums.0[group as usize].rows)
            .sum::<f64>() as usize
    }

    /// A measure of the unchanged model, by sequence; divergences are 0.
    pub fn clean(&self, group: TargetGroup, measure: ScalingMeasure) -> Vec<Group> {
        self.clean
            .iter()
            .map(|sums| sums.0[group as usize].of(measure))
            .collect()
    }

    /// A measure under a change and a factor, by their places in the plan, by sequence.
    ///
    /// # Errors
    /// - [`ScalingError::NotInPlan`] for a place that the plan does not have
    pub fn scaled(
        &self,
        change: usize,
        factor: usize,
        group: TargetGroup,
        measure: ScalingMeasure,
    ) -> Result<Vec<Group>, ScalingError> {
        let of_change = self.scaled.get(change);
        let Some(sums) = of_change.and_then(|factors| factors.get(factor)) else {
            return Err(ScalingError::NotInPlan {
                change,
                factor,
                changes: self.scaled.len(),
                factors: self.scaled.first().map_or(0, Vec::len),
            });
        };
        let sums = sums.iter();
        Ok(sums
            .map(|sums| sums.0[group as usize].of(measure))
            .collect())
    }

    /// `scaled - clean`, by sequence.
    ///
    /// # Errors
    /// - as [`ScalingEffects::scaled`]
    pub fn difference(
        &self,
        change: usize,
        factor: usize,
        group: TargetGroup,
        measure: ScalingMeasure,
    ) -> Result<Vec<Group>, ScalingError> {
        let clean = self.clean(group, measure);
        let scaled = self.scaled(change, factor, group, measure)?;
        let both = scaled.iter().zip(clean);
        Ok(both
            .map(|(scaled, clean)| Group {
                sum: scaled.sum - clean.sum,
                count: clean.count,
            })
            .collect())
    }
}

impl GroupSums {
    fn of(&self, measure: ScalingMeasure) -> Group {
        Group {
            sum: self.values[measure as usize],
            count: self.rows,
        }
    }
}

impl Sums {
    fn add(&mut self, group: TargetGroup, values: &[f64; MEASURES]) {
        for group in [TargetGroup::All, group] {
            let sums = &mut self.0[group as usize];
            sums.rows += 1.0;
            sums.values
                .iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Measures every change at every factor; `progress` hears of rows done, each for all changes.
///
/// # Errors
/// - [`AblateError::NoSuchSequence`], [`AblateError::Empty`] if the plan names no rows
/// - [`AblateError::Repeated`] for a sequence or factor that stands twice
/// - [`AblateError::Architecture`] for a change of neurons behind a norm (OLMo 2)
/// - [`AblateError::NotFiniteClean`] if the model itself gives no numbers
/// - [`ScalingError::NotFinite`] if a factor is so large that logits overflow
/// - [`ScalingError::Torch`] if libtorch fails
pub fn measure_scaling(
    model: &Model,
    sample: &Sample,
    changes: &[NamedChange],
    plan: &ScalingPlan,
    progress: &dyn Fn(usize),
) -> Result<ScalingEffects, ScalingError> {
    let d_vocab = model.config().vocab_size as usize;
    distinct("factor", &plan.factors)?;
    let scales_neurons =
        |change: &NamedChange| matches!(change.change.target(), Target::OutputColumns(_));
    if changes.iter().any(scales_neurons) {
        writes_directly(model)?;
    }
    let (all_rows, rows) = sample.rows(&plan.sequences)?;
    let order: Vec<u32> = (0..d_vocab as u32).collect();
    let vocabulary = Vocabulary {
        rare: mask(&plan.rare, d_vocab)?,
        common: mask(&plan.common, d_vocab)?,
        unembedding: Unembedding::new(Readout::of_model(model)?, &order, Device::Cpu)?,
    };
    let clusters = sample.clusters(&plan.sequences);
    let empty = vec![Sums::default(); sample.n_clusters(&plan.sequences)];
    let mut effects = ScalingEffects {
        rows,
        clean: empty.clone(),
        scaled: vec![vec![empty; plan.factors.len()]; changes.len()],
    };
    // Per row of text: log-probabilities and probabilities in f64, g and u in f32.
    let rows_at_once = (plan.memory_budget / (24 * d_vocab)).max(1);
    for batch in same_length_batches(sample, &plan.sequences, plan.batch) {
        let tokens: Vec<&[i64]> = batch
            .iter()
            .map(|&i| sample.sequences()[i].as_slice())
            .collect();
        for (states, sequence) in last_layer_states(model, &tokens)?.iter().zip(batch) {
            let slot = plan
                .sequences
                .iter()
                .position(|s| *s == sequence)
                .map_or(0, |place| clusters[place]);
            let of_sequence: Vec<Row> = all_rows
                .iter()
                .copied()
                .filter(|row| row.sequence == sequence)
                .collect();
            for rows in of_sequence.chunks(rows_at_once) {
                let block = Block::new(&vocabulary, states, rows)?;
                for (row, values) in rows.iter().zip(block.clean()?) {
                    effects.clean[slot].add(vocabulary.group(row), &values);
                }
                for (change, scaled) in changes.iter().zip(&mut effects.scaled) {
                    let moved = block.moved(&change.change)?;
                    for (&factor, scaled) in plan.factors.iter().zip(scaled) {
                        for (row, values) in rows.iter().zip(block.scaled(&moved, factor)?) {
                            if values.iter().any(|v| !v.is_finite()) {
                                return Err(ScalingError::NotFinite {
                                    change: change.name.clone(),
                                    factor,
                                    sequence,
                                    pos: row.pos,
                                });
                            }
                            scaled[slot].add(vocabulary.group(row), &values);
                        }
                    }
                }
                progress(rows.len());
            }
        }
    }
    Ok(effects)
}

fn mask(ids: &[u32], d_vocab: usize) -> Result<Vec<f64>, ScalingError> {
    let mut mask = vec![0.0; d_vocab];
    for &id in ids {
        *mask.get_mut(id as usize).ok_or(ScalingError::Vocabulary {
            frequencies: id as usize + 1,
            d_vocab,
        })? = 1.0;
    }
    Ok(mask)
}

/// Everything over the vocabulary that is the same for all rows.
struct Vocabulary {
    rare: Vec<f64>,
    common: Vec<f64>,
    unembedding: Unembedding,
}

impl Vocabulary {
    fn group(&self, row: &Row) -> TargetGroup {
        let target = row.target as usize;
        match (self.rare[target] > 0.0, self.common[target] > 0.0) {
            (true, _) => TargetGroup::Rare,
            (_, true) => TargetGroup::Common,
            _ => TargetGroup::Between,
        }
    }
}

/// Some rows of one sequence, with their clean predictions.
struct Block<'b> {
    vocabulary: &'b Vocabulary,
    rows: &'b [Row],
    scale: NormScale,
    resid: Projected,
    /// Activations, `[row, d_mlp]`, f64.
    activations: Tensor,
    predictions: Predictions<'b>,
}

/// Clean predictions, as plain numbers that threads share.
struct Predictions<'b> {
    rare: &'b [f64],
    targets: Vec<usize>,
    /// Log-probabilities and probabilities, `[row][d_vocab]`.
    lp: Vec<f64>,
    p: Vec<f64>,
}

/// How the logits of a block move under a change with factor 2.
enum Moved {
    /// `u`, `[row][d_vocab]`.
    Rows(Vec<f32>),
    /// The residual stream moves, and with it the scale of the final norm: `cross = x_c . Delta_c`, `[row]`.
    Residual { delta: Projected, cross: Vec<f64> },
}

impl<'b> Block<'b> {
    fn new(
        vocabulary: &'b Vocabulary,
        states: &LastLayerStates,
        rows: &'b [Row],
    ) -> Result<Self, ScalingError> {
        let at: Vec<i64> = rows.iter().map(|row| row.pos as i64).collect();
        let at = Tensor::f_from_slice(&at)?;
        let resid = vocabulary
            .unembedding
            .project(&states.resid.f_index_select(0, &at)?)?;
        let activations = states
            .activations
            .f_index_select(0, &at)?
            .f_to_kind(Kind::Double)?;
        let (scale, b) = (vocabulary.unembedding.scale(), vocabulary.unembedding.b());
        let g = resid.logits.host()?;
        let mut lp = vec![0.0; g.len()];
        lp.par_chunks_mut(b.len())
            .zip(g.par_chunks(b.len()))
            .zip(&resid.norm2)
            .for_each(|((lp, g), &norm2)| {
                let s = scale.at(norm2);
                lp.iter_mut()
                    .zip(g)
                    .zip(b)
                    .for_each(|((lp, &g), &b)| *lp = f64::from(g) / s + f64::from(b));
                let lse = surprisal_metrics::log_sum_exp(lp);
                lp.iter_mut().for_each(|lp| *lp -= lse);
            });
        let p = lp.par_iter().map(|lp| lp.exp()).collect();
        let targets = rows.iter().map(|row| row.target as usize).collect();
        let predictions = Predictions {
            rare: &vocabulary.rare,
            targets,
            lp,
            p,
        };
        Ok(Self {
            vocabulary,
            rows,
            scale,
            resid,
            activations,
            predictions,
        })
    }

    /// Measures of the unchanged model, `[row]`.
    fn clean(&self) -> Result<Vec<[f64; MEASURES]>, ScalingError> {
        let predictions = &self.predictions;
        let values: Vec<_> = (0..self.rows.len())
            .into_par_iter()
            .map(|r| predictions.measure(r, |_| 0.0))
            .collect();
        match values
            .iter()
            .position(|values| values.iter().any(|v| !v.is_finite()))
        {
            None => Ok(values),
            Some(r) => Err(AblateError::NotFiniteClean {
                sequence: self.rows[r].sequence,
                pos: self.rows[r].pos,
            }
            .into()),
        }
    }

    fn moved(&self, change: &WeightChange) -> Result<Moved, ScalingError> {
        match change.target() {
            Target::UnembeddingRows(ids) => {
                let d_vocab = self.vocabulary.rare.len();
                let scales: Vec<f64> = self
                    .resid
                    .norm2
                    .iter()
                    .map(|&norm2| self.scale.at(norm2))
                    .collect();
                let normed = self
                    .resid
                    .centred
                    .f_div(&Tensor::f_from_slice(&scales)?.f_unsqueeze(1)?)?;
                let readout = self.vocabulary.unembedding.readout();
                let normed = normed.f_mul(readout.gamma())?.f_add(readout.beta())?; // [row, d_model]
                let of_ids = normed
                    .f_matmul(&change.per_unit().f_tr()?)?
                    .f_to_kind(Kind::Float)?; // [row, id]
                let of_ids: Vec<f32> = Vec::try_from(&of_ids.f_contiguous()?.f_view(-1)?)?;
                let mut u = vec![0.0; self.rows.len() * d_vocab];
                for (u, of_ids) in u.chunks_mut(d_vocab).zip(of_ids.chunks(ids.len())) {
                    ids.iter()
                        .zip(of_ids)
                        .for_each(|(&id, &value)| u[id as usize] = value);
                }
                Ok(Moved::Rows(u))
            }
            Target::OutputColumns(neurons) => {
                let index: Vec<i64> = neurons.iter().map(|&n| n as i64).collect();
                let activations = self
                    .activations
                    .f_index_select(1, &Tensor::f_from_slice(&index)?)?; // [row, neuron]
                let delta = self
                    .vocabulary
                    .unembedding
                    .project(&activations.f_matmul(change.per_unit())?)?;
                let cross = self
                    .resid
                    .centred
                    .f_mul(&delta.centred)?
                    .f_sum_dim_intlist(-1, false, Kind::Double)?;
                Ok(Moved::Residual {
                    delta,
                    cross: Vec::try_from(&cross)?,
                })
            }
        }
    }

    /// Measures under a change with a factor, `[row]`.
    fn scaled(&self, moved: &Moved, factor: f64) -> Result<Vec<[f64; MEASURES]>, TchError> {
        let (predictions, scale, k) = (&self.predictions, self.scale, factor - 1.0);
        let d_vocab = predictions.rare.len();
        let of_row = |r: usize| r * d_vocab..(r + 1) * d_vocab;
        let rows = (0..self.rows.len()).into_par_iter();
        Ok(match moved {
            Moved::Rows(u) => rows
                .map(|r| {
                    let u = &u[of_row(r)];
                    predictions.measure(r, |v| k * f64::from(u[v]))
                })
                .collect(),
            Moved::Residual { delta, cross } => {
                let (g, u, norm2, delta2) = (
                    self.resid.logits.host()?,
                    delta.logits.host()?,
                    &self.resid.norm2,
                    &delta.norm2,
                );
                rows.map(|r| {
                    let (g, u) = (&g[of_row(r)], &u[of_row(r)]);
                    // Rounding must not make a squared norm negative.
                    let scaled =
                        scale.at((norm2[r] + 2.0 * k * cross[r] + k * k * delta2[r]).max(0.0));
                    let (a, c) = (1.0 / scaled - 1.0 / scale.at(norm2[r]), k / scaled);
                    predictions.measure(r, |v| a * f64::from(g[v]) + c * f64::from(u[v]))
                })
                .collect()
            }
        })
    }
}

impl Predictions<'_> {
    /// Measures of row `r` when its logits move by `change(token)`.
    fn measure(&self, r: usize, change: impl Fn(usize) -> f64) -> [f64; MEASURES] {
        let d_vocab = self.rare.len();
        let (lp, p) = (
            &self.lp[r * d_vocab..(r + 1) * d_vocab],
            &self.p[r * d_vocab..(r + 1) * d_vocab],
        );
        let target = self.targets[r];
        let moved: Vec<f64> = (0..d_vocab).map(change).collect();
        let max = moved.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // ln of the new partition function over the old one.
        let ln_z = max
            + moved
                .iter()
                .zip(p)
                .map(|(m, p)| p * (m - max).exp())
                .sum::<f64>()
                .ln();
        let threshold = lp[target] + moved[target];
        let mut values = [0.0; MEASURES];
        let [
            loss,
            rare_mass,
            top1,
            top5,
            entropy,
            kl_clean,
            kl_scaled,
            js,
        ] = &mut values;
        let mut above = 0usize;
        for v in 0..d_vocab {
            let d = moved[v] - ln_z; // ln p' - ln p
            let ratio = d.exp();
            let (p, scaled) = (p[v], p[v] * ratio);
            let half = ((1.0 + ratio) / 2.0).ln(); // ln m - ln p, with the mixture m
            *rare_mass += self.rare[v] * scaled;
            *entropy -= scaled * (lp[v] + d);
            *kl_clean -= p * d;
            *kl_scaled += scaled * d;
            *js += 0.5 * (scaled * (d - half) - p * half);
            above += usize::from(lp[v] + moved[v] > threshold);
        }
        *loss = ln_z - threshold;
        *top1 = f64::from(u8::from(above == 0));
        *top5 = f64::from(u8::from(above < 5));
        // Rounding is taken off at 0, below which no divergence goes.
        for divergence in [kl_clean, kl_scaled, js] {
            *divergence = divergence.max(0.0);
        }
        values
    }
}
