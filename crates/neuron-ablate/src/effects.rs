//! Effects per neuron: means over its rows, kept per cluster (a document, or a sequence) so that intervals can be resampled.

use std::sync::Arc;

use surprisal_metrics::{Group, Interval, Resamples};

use crate::{AblateError, Measure, NeuronId, Variant, keys::EffectKeys};

/// Sums over the rows of one cluster, for one neuron or set.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterSums {
    pub(crate) rows: f64,
    pub(crate) band_rows: f64,
    /// Of a quantity of each row: the activation of a neuron, the length of a change.
    pub(crate) quantity: f64,
    /// `[variant][measure]`: change, then absolute change.
    pub(crate) change: Vec<[f64; 2]>,
    /// `[variant]`: the same for the loss of rows in the band alone.
    pub(crate) band_loss: Vec<[f64; 2]>,
    /// Change of the target's rank, and that of rows in the band; none where ranks are not measured.
    pub(crate) rank: Option<[f64; 2]>,
}

impl ClusterSums {
    fn new(keys: &EffectKeys) -> Self {
        Self {
            change: vec![[0.0; 2]; keys.len()],
            band_loss: vec![[0.0; 2]; keys.variants().len()],
            ..Self::default()
        }
    }

    /// Adds a row; `clean` is `[measure]`, `ablated` is `[variant][measure]`.
    pub(crate) fn add(&mut self, clean: &[f64], ablated: &[f64], quantity: f64, in_band: bool) {
        let measures = clean.len();
        self.rows += 1.0;
        self.quantity += quantity;
        for (i, value) in ablated.iter().enumerate() {
            let change = value - clean[i % measures];
            self.change[i][0] += change;
            self.change[i][1] += change.abs();
        }
        if in_band {
            self.band_rows += 1.0;
            for (variant, sums) in self.band_loss.iter_mut().enumerate() {
                let change = ablated[variant * measures] - clean[0];
                sums[0] += change;
                sums[1] += change.abs();
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.band_rows += other.band_rows;
        self.quantity += other.quantity;
        if let Some([all, band]) = other.rank {
            let sum = self.rank.get_or_insert([0.0; 2]);
            *sum = [sum[0] + all, sum[1] + band];
        }
        for (sums, more) in self
            .change
            .iter_mut()
            .zip(&other.change)
            .chain(self.band_loss.iter_mut().zip(&other.band_loss))
        {
            sums[0] += more[0];
            sums[1] += more[1];
        }
    }
}

/// Which mean of the changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mean {
    /// Of `after - before`.
    Signed,
    /// Of `|after - before|`.
    Absolute,
}

/// Which rows a mean runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// All rows.
    All,
    /// The rows in the band; of the loss alone.
    Band,
}

/// A mean change and a mean absolute change, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Mean of `after - before`.
    pub mean: f64,
    /// Mean of `|after - before|`.
    pub mean_abs: f64,
}

/// All effects of one neuron.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NeuronEffects {
    /// Layer of the MLP.
    pub layer: usize,
    /// Index in the layer.
    pub neuron: usize,
    /// Mean activation over the sample, which mean ablation puts in.
    pub mean_activation: f64,
    /// Norm of the output weights `w_n`.
    pub w_out_norm: f64,
    /// The measured changes.
    pub effects: EffectSums,
}

/// Changes of the measures: sums over the rows of each cluster ([`Sample::clusters`](crate::Sample::clusters)).
#[derive(Debug, Clone)]
pub struct EffectSums {
    pub(crate) clusters: Vec<ClusterSums>,
    keys: Arc<EffectKeys>,
}

impl NeuronEffects {
    /// The neuron.
    pub fn id(&self) -> NeuronId {
        let (layer, neuron) = (self.layer, self.neuron);
        NeuronId { layer, neuron }
    }

    /// Mean activation over the rows themselves.
    pub fn row_activation(&self) -> f64 {
        self.effects.row_quantity()
    }
}

impl EffectSums {
    /// Without a row yet.
    pub(crate) fn new(clusters: usize, keys: Arc<EffectKeys>) -> Self {
        Self {
            clusters: vec![ClusterSums::new(&keys); clusters],
            keys,
        }
    }

    /// Adds a row of a cluster, as [`ClusterSums::add`].
    pub(crate) fn add(
        &mut self,
        cluster: usize,
        clean: &[f64],
        ablated: &[f64],
        quantity: f64,
        in_band: bool,
    ) {
        self.clusters[cluster].add(clean, ablated, quantity, in_band);
    }

    /// Adds the change of a target's rank.
    pub(crate) fn add_rank(&mut self, cluster: usize, change: f64, in_band: bool) {
        let sums = self.clusters[cluster].rank.get_or_insert([0.0; 2]);
        sums[0] += change;
        sums[1] += if in_band { change } else { 0.0 };
    }

    /// Mean change of the rank of the target under the total effect, over all rows or those in the band; `None` where it was not
    /// measured, or without such rows.
    pub fn rank_change(&self, over: Over) -> Option<f64> {
        let total = self.total();
        let (sum, rows) = match over {
            Over::All => (total.rank?[0], total.rows),
            Over::Band => (total.rank?[1], total.band_rows),
        };
        (rows > 0.0).then(|| sum / rows)
    }

    /// Number of rows behind the means.
    pub fn rows(&self) -> usize {
        self.clusters.iter().map(|s| s.rows).sum::<f64>() as usize
    }

    /// Number of rows in the band.
    pub fn band_rows(&self) -> usize {
        self.clusters.iter().map(|s| s.band_rows).sum::<f64>() as usize
    }

    /// Mean over the rows of the quantity that came with each.
    pub(crate) fn row_quantity(&self) -> f64 {
        let total = self.total();
        total.quantity / total.rows
    }

    /// Change of a measure under a variant, over all rows.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such variant or measure
    pub fn change(&self, variant: Variant, measure: Measure) -> Result<Change, AblateError> {
        let total = self.total();
        let [sum, sum_abs] = total.change[self.keys.place(variant, measure)?];
        Ok(Change {
            mean: sum / total.rows,
            mean_abs: sum_abs / total.rows,
        })
    }

    /// Change of the loss under a variant over the rows in the band; `None` without such rows.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such variant
    pub fn band_loss_change(&self, variant: Variant) -> Result<Option<Change>, AblateError> {
        let total = self.total();
        let [sum, sum_abs] = total.band_loss[self.keys.variant(variant)?];
        Ok((total.band_rows > 0.0).then(|| Change {
            mean: sum / total.band_rows,
            mean_abs: sum_abs / total.band_rows,
        }))
    }

    /// Sums of a change per cluster, the groups that intervals resample.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such variant or measure, or if another measure than the loss is asked for with
    ///   [`Over::Band`]
    pub fn groups(
        &self,
        variant: Variant,
        measure: Measure,
        mean: Mean,
        over: Over,
    ) -> Result<Vec<Group>, AblateError> {
        if over == Over::Band && measure != Measure::Loss {
            return Err(AblateError::NotMeasured {
                what: format!("the measure `{measure:?}` over the rows in the band alone"),
                measured: "the loss".into(),
            });
        }
        let kind = match mean {
            Mean::Signed => 0,
            Mean::Absolute => 1,
        };
        let (variant, place) = (
            self.keys.variant(variant)?,
            self.keys.place(variant, measure)?,
        );
        let group = |s: &ClusterSums| match over {
            Over::All => Group {
                sum: s.change[place][kind],
                count: s.rows,
            },
            Over::Band => Group {
                sum: s.band_loss[variant][kind],
                count: s.band_rows,
            },
        };
        Ok(self.clusters.iter().map(group).collect())
    }

    /// Number of clusters.
    pub fn n_clusters(&self) -> usize {
        self.clusters.len()
    }

    /// Number of clusters that have such rows: those that an interval rests on.
    pub fn n_clusters_with_rows(&self, over: Over) -> usize {
        let rows = |s: &&ClusterSums| match over {
            Over::All => s.rows > 0.0,
            Over::Band => s.band_rows > 0.0,
        };
        self.clusters.iter().filter(rows).count()
    }

    /// Bootstrap-t interval of a mean change, over clusters; `None` without such rows, and where
    /// [`surprisal_metrics::Bootstrap::mean`] gives none.
    ///
    /// # Errors
    /// - as [`EffectSums::groups`]
    /// - [`AblateError::Interval`] if `resamples` are of another number of clusters
    pub fn interval(
        &self,
        variant: Variant,
        measure: Measure,
        mean: Mean,
        over: Over,
        resamples: &Resamples,
    ) -> Result<Option<Interval>, AblateError> {
        let groups = self.groups(variant, measure, mean, over)?;
        match Group::with_values(&groups) {
            0 => Ok(None),
            _ => Ok(resamples.mean(&groups)?),
        }
    }

    /// Bootstrap-t interval, over clusters, of the share of the total effect that a variant leaves out; `None` where the share itself is,
    /// or [`surprisal_metrics::Bootstrap::ratio`] gives none.
    ///
    /// # Errors
    /// - as [`EffectSums::interval`]
    pub fn mediated_share_interval(
        &self,
        direct: Variant,
        over: Over,
        floor: f64,
        resamples: &Resamples,
    ) -> Result<Option<Interval>, AblateError> {
        let groups = |variant| self.groups(variant, Measure::Loss, Mean::Absolute, over);
        let ratio = resamples.ratio(&groups(direct)?, &groups(Variant::Total)?, floor)?;
        Ok(ratio.map(|ratio| ratio.complement()))
    }

    fn total(&self) -> ClusterSums {
        let mut total = ClusterSums::new(&self.keys);
        self.clusters.iter().for_each(|s| total.merge(s));
        total
    }
}
