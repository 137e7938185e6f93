//! The closed form against the model itself: a forward in which the neuron really is replaced.

use neox_core::{Hooks, Model, Site};
use tch::{Kind, TchError, Tensor};

use crate::{
    AblateError, KlDirection, LayerMeans, Measure, NeuronId, PairBlock, Plan, Sample, Sweep,
    TokenFrequencies, Variant,
    readout::host,
    states::{last_layer, layer_means, mean_activations},
};

/// What is compared, in the order of [`explicit`].
const MEASURES: [Measure; 4] = [
    Measure::Loss,
    Measure::Entropy,
    Measure::Kl(KlDirection::ModelFreq),
    Measure::Kl(KlDirection::FreqModel),
];

/// Largest differences between the closed form and the explicit forward, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SelfCheck {
    /// (neuron, row) pairs compared.
    pub pairs: usize,
    /// Of the loss after ablation.
    pub loss: f64,
    /// Of the entropy after ablation.
    pub entropy: f64,
    /// Of `KL(model || freq)` after ablation.
    pub kl_model_freq: f64,
    /// Of `KL(freq || model)` after ablation.
    pub kl_freq_model: f64,
}

impl SelfCheck {
    /// The largest of all.
    pub fn worst(&self) -> f64 {
        [
            self.loss,
            self.entropy,
            self.kl_model_freq,
            self.kl_freq_model,
        ]
        .into_iter()
        .fold(0.0, f64::max)
    }
}

/// Puts a constant in the place of one neuron's activation.
struct Replace {
    site: Site,
    neuron: i64,
    value: f64,
}

impl Hooks for Replace {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, TchError> {
        value.f_index_fill(
            -1,
            &Tensor::f_from_slice(&[self.neuron])?.f_to_device(value.device())?,
            self.value,
        )
    }
}

/// Mean-ablates the neurons of `plan` at the rows of its sequences twice: in closed form, and by forwards with the neuron replaced
/// whose logits are evaluated in f64 on the host. `plan.dose` is taken to be mean ablation.
///
/// # Errors
/// - as [`Sweep::new`] and [`Sweep::run`]
pub fn self_check(
    model: &Model,
    sample: &Sample,
    frequencies: &TokenFrequencies,
    plan: Plan,
) -> Result<SelfCheck, AblateError> {
    let over = plan.semantics.mean_activation;
    let mean = mean_activations(model, sample, over, plan.batch, &|_, _| ())?;
    let means = LayerMeans::default().with_neurons(last_layer(model), mean);
    let sweep = Sweep::new(model, sample, frequencies, vec![], plan)?;
    let mut check = SelfCheck::default();
    sweep.run(
        &mut |block| Ok(check.compare(&sweep, frequencies, &means, block)?),
        &|_| (),
    )?;
    Ok(check)
}

/// The same for neurons of any layers, which [`Sweep::run_neurons`] ablates by running the model on; the neurons of the plan play no part.
///
/// # Errors
/// - as [`Sweep::new`] and [`Sweep::run_neurons`]
pub fn self_check_neurons(
    model: &Model,
    sample: &Sample,
    frequencies: &TokenFrequencies,
    plan: Plan,
    neurons: &[NeuronId],
) -> Result<SelfCheck, AblateError> {
    let mut layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let over = plan.semantics.mean_activation;
    let means = layer_means(model, sample, (&layers, &[]), over, plan.batch, &|_, _| ())?;
    let sweep = Sweep::new(model, sample, frequencies, vec![], plan)?;
    let mut check = SelfCheck::default();
    sweep.run_neurons(
        neurons,
        &means,
        &mut |block| Ok(check.compare(&sweep, frequencies, &means, block)?),
        &|_| (),
    )?;
    Ok(check)
}

impl SelfCheck {
    /// Compares a block with forwards of the ablated model.
    fn compare(
        &mut self,
        sweep: &Sweep<'_>,
        frequencies: &TokenFrequencies,
        means: &LayerMeans,
        block: &PairBlock<'_>,
    ) -> Result<(), AblateError> {
        let mut ablated = MEASURES
            .iter()
            .map(|measure| block.ablated(Variant::Total, *measure))
            .collect::<Result<Vec<_>, _>>()?;
        for &neuron in block.neurons {
            let mean = means
                .neurons(block.layer)
                .and_then(|means| means.get(neuron));
            let mut replace = Replace {
                site: Site::MlpPost(block.layer),
                neuron: neuron as i64,
                value: *mean.ok_or_else(|| AblateError::Empty {
                    what: format!("no mean activation of neuron {}.{neuron}", block.layer),
                })?,
            };
            let mut sequence = None;
            for row in block.rows {
                let logits = match &sequence {
                    Some((done, logits)) if *done == row.sequence => logits,
                    _ => {
                        let tokens = &sweep.sample().sequences()[row.sequence];
                        let tokens = Tensor::f_from_slice(tokens)?.f_unsqueeze(0)?;
                        let forward = || sweep.model.forward(&tokens, None, &mut replace);
                        let logits = host(&tch::no_grad(forward)?.f_squeeze_dim(0)?)?;
                        &sequence.insert((row.sequence, logits)).1
                    }
                };
                let z: Vec<f64> = Vec::try_from(&centred(&logits.f_get(row.pos as i64)?)?)?;
                let explicit = explicit(&z, row.target as usize, frequencies);
                for (worst, (ours, theirs)) in [
                    &mut self.loss,
                    &mut self.entropy,
                    &mut self.kl_model_freq,
                    &mut self.kl_freq_model,
                ]
                .into_iter()
                .zip(ablated.iter_mut().filter_map(Iterator::next).zip(explicit))
                {
                    *worst = worst.max((ours - theirs).abs());
                }
                self.pairs += 1;
            }
        }
        Ok(())
    }
}

fn centred(logits: &Tensor) -> Result<Tensor, TchError> {
    logits.f_sub(&logits.f_mean(Kind::Double)?)
}

/// Loss, entropy, `KL(model || freq)` and `KL(freq || model)` from logits, in f64 and by their definitions.
fn explicit(z: &[f64], target: usize, frequencies: &TokenFrequencies) -> [f64; 4] {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    let mut measures = [lse - z[target], 0.0, 0.0, 0.0];
    for ((z, q), log_q) in z.iter().zip(frequencies.q()).zip(frequencies.log_q()) {
        let log_p = z - lse;
        measures[1] -= log_p.exp() * log_p;
        measures[2] += log_p.exp() * (log_p - log_q);
        measures[3] += q * (log_q - log_p);
    }
    measures
}
