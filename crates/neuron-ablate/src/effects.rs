//! Effects per neuron: means over its rows, kept per cluster (a document, or a sequence) so that intervals can be resampled.

use std::sync::Arc;

use surprisal_metrics::{Group, Interval, Resamples};

use crate::{AblateError, Measure, NeuronId, Variant, keys::EffectKeys};

/// Sums over the rows of one cluster, for one neuron or set.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterSums {
    pub(crate) rows: f64,
    /// `[band]`: those that count for it.
    pub(crate) band_rows: Vec<f64>,
    /// Of a quantity of each row: the activation of a neuron, the length of a change.
    pub(crate) quantity: f64,
    /// `[variant][measure]`: change, then absolute change.
    pub(crate) change: Vec<[f64; 2]>,
    /// `[band][variant]`: the same for the loss of the rows of a band alone.
    pub(crate) band_loss: Vec<Vec<[f64; 2]>>,
    /// Change of the target's rank, over all rows and then `[band]`; none where ranks are not measured.
    pub(crate) rank: Option<Vec<f64>>,
}

impl ClusterSums {
    fn new(keys: &EffectKeys) -> Self {
        Self {
            change: vec![[0.0; 2]; keys.len()],
            band_rows: vec![0.0; keys.bands()],
            band_loss: vec![vec![[0.0; 2]; keys.variants().len()]; keys.bands()],
            ..Self::default()
        }
    }

    /// Adds a row; `clean` is `[measure]`, `ablated` is `[variant][measure]`, `in_bands` is `[band]`.
    pub(crate) fn add(&mut self, clean: &[f64], ablated: &[f64], quantity: f64, in_bands: &[bool]) {
        let measures = clean.len();
        self.rows += 1.0;
        self.quantity += quantity;
        for (i, value) in ablated.iter().enumerate() {
            let change = value - clean[i % measures];
            self.change[i][0] += change;
            self.change[i][1] += change.abs();
        }
        for (band, _) in in_bands.iter().enumerate().filter(|(_, counts)| **counts) {
            self.band_rows[band] += 1.0;
            for (variant, sums) in self.band_loss[band].iter_mut().enumerate() {
                let change = ablated[variant * measures] - clean[0];
                sums[0] += change;
                sums[1] += change.abs();
            }
        }
    }

    fn add_rank(&mut self, change: f64, in_bands: &[bool]) {
        let sums = self
            .rank
            .get_or_insert_with(|| vec![0.0; 1 + in_bands.len()]);
        sums[0] += change;
        for (sum, &counts) in sums[1..].iter_mut().zip(in_bands) {
            *sum += if counts { change } else { 0.0 };
        }
    }

    /// Rows that count.
    fn rows_over(&self, over: Over) -> f64 {
        match over {
            Over::All => self.rows,
            Over::Band(band) => self.band_rows.get(band).copied().unwrap_or_default(),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.quantity += other.quantity;
        add_each(&mut self.band_rows, &other.band_rows);
        if let Some(more) = &other.rank {
            add_each(self.rank.get_or_insert_with(|| vec![0.0; more.len()]), more);
        }
        let own = std::iter::once(&mut self.change).chain(&mut self.band_loss);
        let others = std::iter::once(&other.change).chain(&other.band_loss);
        for (sums, more) in own
            .zip(others)
            .flat_map(|(own, more)| own.iter_mut().zip(more))
        {
            add_each(sums, more);
        }
    }
}

fn add_each(sums: &mut [f64], more: &[f64]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
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
    /// The rows of a band, by its place among those of the sweep, of which 0 is the long-tail band; of the loss alone.
    Band(usize),
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
        in_bands: &[bool],
    ) {
        self.clusters[cluster].add(clean, ablated, quantity, in_bands);
    }

    /// Adds the change of a target's rank.
    pub(crate) fn add_rank(&mut self, cluster: usize, change: f64, in_bands: &[bool]) {
        self.clusters[cluster].add_rank(change, in_bands);
    }

    /// Mean change of the rank of the target under the total effect, over all rows or those of a band; `None` where it was not
    /// measured, or without such rows.
    pub fn rank_change(&self, over: Over) -> Option<f64> {
        let total = self.total();
        let rows = total.rows_over(over);
        let place = match over {
            Over::All => 0,
            Over::Band(band) => 1 + band,
        };
        let sum = *total.rank?.get(place)?;
        (rows > 0.0).then(|| sum / rows)
    }

    /// Number of rows behind the means.
    pub fn rows(&self) -> usize {
        self.clusters.iter().map(|s| s.rows).sum::<f64>() as usize
    }

    /// Number of rows of a band; 0 of one that the sweep does not have.
    pub fn band_rows(&self, band: usize) -> usize {
        let rows = |s: &ClusterSums| s.rows_over(Over::Band(band));
        self.clusters.iter().map(rows).sum::<f64>() as usize
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

    /// Change of the loss under a variant over the rows of a band; `None` without such rows.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such variant or band
    pub fn band_loss_change(
        &self,
        variant: Variant,
        band: usize,
    ) -> Result<Option<Change>, AblateError> {
        self.keys.band(band)?;
        let total = self.total();
        let [sum, sum_abs] = total.band_loss[band][self.keys.variant(variant)?];
        let rows = total.rows_over(Over::Band(band));
        Ok((rows > 0.0).then(|| Change {
            mean: sum / rows,
            mean_abs: sum_abs / rows,
        }))
    }

    /// Sums of a change per cluster, the groups that intervals resample.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such variant, measure or band, or if another measure than the loss is asked for
    ///   with [`Over::Band`]
    pub fn groups(
        &self,
        variant: Variant,
        measure: Measure,
        mean: Mean,
        over: Over,
    ) -> Result<Vec<Group>, AblateError> {
        if let Over::Band(band) = over {
            self.keys.band(band)?;
            if measure != Measure::Loss {
                return Err(AblateError::NotMeasured {
                    what: format!("the measure `{measure:?}` over the rows of a band alone"),
                    measured: "the loss".into(),
                });
            }
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
            Over::Band(band) => Group {
                sum: s.band_loss[band][variant][kind],
                count: s.band_rows[band],
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
        let rows = |s: &&ClusterSums| s.rows_over(over) > 0.0;
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
