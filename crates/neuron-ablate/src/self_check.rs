//! The closed form against the model itself: a forward in which the neuron really is replaced, and every variant by its definition.

use std::collections::{BTreeMap, btree_map::Entry};

use neox_core::{HookError, Hooks, Model, NoHooks, Site};
use tch::{Kind, TchError, Tensor};

use crate::{
    AblateError, Direction, KlDirection, LayerMeans, Measure, NeuronId, OutsideBand, PairBlock,
    Plan, Readout, Row, Sample, Semantics, Sweep, TokenBand, TokenFrequencies, Variant,
    means::{layer_means, mean_activations},
    readout::host,
    states::last_layer,
};

/// Largest differences between the closed form and the explicit forward, in nats.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SelfCheck {
    /// (neuron, row) pairs compared.
    pub pairs: usize,
    /// For each variant and measure of the sweep.
    pub differences: Vec<Difference>,
}

/// The largest difference of one measure under one variant.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// As in column names.
    pub variant: String,
    /// As in column names.
    pub measure: String,
    /// In nats.
    pub worst: f64,
}

impl SelfCheck {
    /// The largest of all; infinite where one is no number.
    pub fn worst(&self) -> f64 {
        let worst = self.differences.iter().map(|difference| difference.worst);
        worst.fold(0.0, larger)
    }
}

/// The larger of two differences; one that is no number is larger than any.
fn larger(a: f64, b: f64) -> f64 {
    match b.is_nan() {
        true => f64::INFINITY,
        false => a.max(b),
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

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        let neuron = Tensor::f_from_slice(&[self.neuron])?.f_to_device(value.device())?;
        Ok(value.f_index_fill(-1, &neuron, self.value)?)
    }
}

/// Mean-ablates the neurons of `plan` at the rows of its sequences twice: in closed form, and by forwards with the neuron replaced,
/// of whose residual stream and logits every variant and measure of the plan is made by its definition, in f64 on the host.
/// `plan.dose` is taken to be mean ablation.
///
/// # Errors
/// - as [`Sweep::new`] and [`Sweep::run`]
pub fn self_check(
    model: &Model,
    sample: &Sample,
    frequencies: &TokenFrequencies,
    bands: &[TokenBand],
    plan: Plan,
) -> Result<SelfCheck, AblateError> {
    let over = plan.semantics.mean_activation;
    let definitions = Definitions::new(frequencies, bands, &plan.semantics)?;
    let sweep = Sweep::new(model, sample, frequencies, bands.to_vec(), plan)?;
    let mean = mean_activations(sweep.states(), over, &|_, _| ())?;
    let means = LayerMeans::default().with_neurons(last_layer(model), mean);
    let mut check = SelfCheck::of(&sweep)?;
    sweep.run_with(
        &mut |block| Ok(check.compare(&sweep, &definitions, &means, block)?),
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
    bands: &[TokenBand],
    plan: Plan,
    neurons: &[NeuronId],
) -> Result<SelfCheck, AblateError> {
    let mut layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let over = plan.semantics.mean_activation;
    let definitions = Definitions::new(frequencies, bands, &plan.semantics)?;
    let sweep = Sweep::new(model, sample, frequencies, bands.to_vec(), plan)?;
    let means = layer_means(sweep.states(), (&layers, &[]), over, &|_, _| ())?;
    let mut check = SelfCheck::of(&sweep)?;
    sweep.run_neurons_with(
        neurons,
        &means,
        &mut |block| Ok(check.compare(&sweep, &definitions, &means, block)?),
        &|_| (),
    )?;
    Ok(check)
}

impl SelfCheck {
    /// One that has compared nothing yet.
    fn of(sweep: &Sweep<'_>) -> Result<Self, AblateError> {
        let mut differences = Vec::new();
        for variant in sweep.variants() {
            for measure in sweep.measures() {
                differences.push(Difference {
                    variant: sweep.variant_name(*variant)?,
                    measure: sweep.measure_name(*measure)?,
                    worst: 0.0,
                });
            }
        }
        Ok(Self {
            pairs: 0,
            differences,
        })
    }

    /// Compares a block with forwards of the ablated model.
    fn compare(
        &mut self,
        sweep: &Sweep<'_>,
        definitions: &Definitions<'_>,
        means: &LayerMeans,
        block: &PairBlock<'_>,
    ) -> Result<(), AblateError> {
        let (variants, measures) = (sweep.variants(), sweep.measures());
        let mut found = Vec::with_capacity(variants.len() * measures.len());
        for variant in variants {
            for measure in measures {
                found.push(block.ablated(*variant, *measure)?);
            }
        }
        let means = means.neurons(block.layer);
        // One forward of a text serves all neurons.
        let mut clean: BTreeMap<usize, Tensor> = BTreeMap::new();
        for &neuron in block.neurons {
            let mean = means.and_then(|means| means.get(neuron));
            let mut replace = Replace {
                site: Site::MlpPost(block.layer),
                neuron: neuron as i64,
                value: *mean.ok_or_else(|| AblateError::Empty {
                    what: format!("no mean activation of neuron {}.{neuron}", block.layer),
                })?,
            };
            let mut of_text: Option<(usize, Forwards)> = None;
            for row in block.rows {
                let forwards = match &of_text {
                    Some((sequence, forwards)) if *sequence == row.sequence => forwards,
                    _ => {
                        let forwards = Forwards::of(sweep, row.sequence, &mut clean, &mut replace)?;
                        &of_text.insert((row.sequence, forwards)).1
                    }
                };
                let logits = forwards.at(row.pos)?;
                let expected = variants.iter().flat_map(|variant| {
                    let z = definitions.logits(*variant, &logits);
                    let measure = |m: &Measure| definitions.measure(*m, &z, row);
                    measures.iter().map(measure).collect::<Vec<f64>>()
                });
                let each = self.differences.iter_mut().zip(&mut found).zip(expected);
                for ((difference, found), expected) in each {
                    let off = found.next().map_or(f64::NAN, |found| found - expected);
                    difference.worst = larger(difference.worst, off.abs());
                }
                self.pairs += 1;
            }
        }
        Ok(())
    }
}

/// Logits of one text, `[pos, d_vocab]` on the host.
struct Forwards {
    clean: Tensor,
    ablated: Tensor,
    /// Of the ablated residual stream, with the clean scale of the final norm.
    frozen_ln: Tensor,
}

/// The same at one position, in f64 and centred over the vocabulary.
struct Logits {
    clean: Vec<f64>,
    ablated: Vec<f64>,
    frozen_ln: Vec<f64>,
}

impl Forwards {
    /// `clean` has the residual streams of the unchanged model that were needed so far, by sequence.
    fn of(
        sweep: &Sweep<'_>,
        sequence: usize,
        clean: &mut BTreeMap<usize, Tensor>,
        replace: &mut Replace,
    ) -> Result<Self, AblateError> {
        let model = sweep.model("the self-check")?;
        let tokens = Tensor::f_from_slice(&sweep.sample().sequences()[sequence])?.f_unsqueeze(0)?;
        let residual = |hooks: &mut dyn Hooks| -> Result<Tensor, AblateError> {
            let residual = tch::no_grad(|| model.residual(&tokens, None, hooks))?;
            Ok(residual.f_squeeze_dim(0)?)
        };
        let ablated = residual(replace)?;
        let clean = match clean.entry(sequence) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(residual(&mut NoHooks)?),
        };
        let logits = |residual: &Tensor| -> Result<Tensor, AblateError> {
            Ok(model.unembed(residual)?.f_to_device(tch::Device::Cpu)?)
        };
        Ok(Self {
            frozen_ln: frozen_norm(model, clean, &ablated)?,
            clean: logits(clean)?,
            ablated: logits(&ablated)?,
        })
    }

    fn at(&self, pos: usize) -> Result<Logits, TchError> {
        let at = |logits: &Tensor| -> Result<Vec<f64>, TchError> {
            let logits = host(&logits.f_get(pos as i64)?)?;
            Vec::try_from(&logits.f_sub(&logits.f_mean(Kind::Double)?)?)
        };
        Ok(Logits {
            clean: at(&self.clean)?,
            ablated: at(&self.ablated)?,
            frozen_ln: at(&self.frozen_ln)?,
        })
    }
}

/// Logits of `ablated` (`[pos, d_model]`) whose final norm has the scale that it has for `clean`.
fn frozen_norm(model: &Model, clean: &Tensor, ablated: &Tensor) -> Result<Tensor, AblateError> {
    let readout = Readout::of_model(model)?;
    let (clean, ablated) = (readout.seen(&host(clean)?)?, readout.seen(&host(ablated)?)?);
    let norm2 = clean
        .f_square()?
        .f_sum_dim_intlist(-1, true, Kind::Double)?;
    let scale = readout.scale();
    let scale = norm2
        .f_div_scalar(scale.d_model)?
        .f_add_scalar(scale.eps)?
        .f_sqrt()?;
    let normed = ablated
        .f_div(&scale)?
        .f_mul(readout.gamma())?
        .f_add(readout.beta())?;
    let w_u = model.w_u();
    let normed = normed.f_to_kind(w_u.f_kind()?)?.f_to_device(w_u.device())?;
    Ok(normed
        .f_linear::<Tensor>(w_u, None)?
        .f_to_device(tch::Device::Cpu)?)
}

/// What variants and measures are, written down without the algebra that makes them fast.
struct Definitions<'a> {
    frequencies: &'a TokenFrequencies,
    bands: &'a [TokenBand],
    /// The all-token direction, then that of each band.
    directions: Vec<Vec<f64>>,
    outside_band: OutsideBand,
}

impl<'a> Definitions<'a> {
    fn new(
        frequencies: &'a TokenFrequencies,
        bands: &'a [TokenBand],
        semantics: &Semantics,
    ) -> Result<Self, AblateError> {
        let kind = match semantics.direction {
            Direction::BandMasked => Direction::BandMasked,
            Direction::AllTokens | Direction::BandRecentred => Direction::BandRecentred,
        };
        let mut directions = vec![frequencies.direction(Direction::AllTokens, &[])?];
        for band in bands {
            directions.push(frequencies.direction(kind, band.mask())?);
        }
        Ok(Self {
            frequencies,
            bands,
            directions,
            outside_band: semantics.outside_band,
        })
    }

    /// The logits under a variant, `[d_vocab]`.
    fn logits(&self, variant: Variant, logits: &Logits) -> Vec<f64> {
        let Logits { clean, ablated, .. } = logits;
        // The projection on v keeps its clean value.
        let frozen = |v: &[f64]| -> Vec<f64> {
            let along = |z: &[f64]| z.iter().zip(v).map(|(z, v)| z * v).sum::<f64>();
            let moved = along(ablated) - along(clean);
            ablated.iter().zip(v).map(|(z, v)| z - moved * v).collect()
        };
        match variant {
            Variant::Total => ablated.clone(),
            Variant::FrozenLn => logits.frozen_ln.clone(),
            Variant::FrozenAll => frozen(&self.directions[0]),
            Variant::FrozenBand(band) => {
                let mut z = frozen(&self.directions[1 + band]);
                if self.outside_band == OutsideBand::Clean {
                    let inside = self.bands[band].mask();
                    for ((z, clean), inside) in z.iter_mut().zip(clean).zip(inside) {
                        if !inside {
                            *z = *clean;
                        }
                    }
                }
                z
            }
        }
    }

    fn measure(&self, measure: Measure, z: &[f64], row: &Row) -> f64 {
        let all: Vec<usize> = (0..z.len()).collect();
        let distribution = |tokens: &[usize]| -> (Vec<f64>, Vec<f64>) {
            let q = self.frequencies.log_q();
            (
                log_softmax(tokens.iter().map(|t| z[*t])),
                log_softmax(tokens.iter().map(|t| q[*t])),
            )
        };
        match measure {
            Measure::Loss => -log_softmax(z.iter().copied())[row.target as usize],
            Measure::Entropy => {
                let log_p = log_softmax(z.iter().copied());
                -log_p.iter().map(|p| p.exp() * p).sum::<f64>()
            }
            Measure::Kl(direction) => kl(direction, distribution(&all)),
            Measure::BandKl(band, direction) => {
                let inside = self.bands[band].mask();
                let tokens: Vec<usize> = all.into_iter().filter(|t| inside[*t]).collect();
                kl(direction, distribution(&tokens))
            }
        }
    }
}

fn log_softmax(z: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let max = z.clone().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + z.clone().map(|z| (z - max).exp()).sum::<f64>().ln();
    z.map(|z| z - lse).collect()
}

/// Between the model and the frequencies, from their log probabilities.
fn kl(direction: KlDirection, (model, frequencies): (Vec<f64>, Vec<f64>)) -> f64 {
    let (from, to) = match direction {
        KlDirection::ModelFreq => (model, frequencies),
        KlDirection::FreqModel => (frequencies, model),
    };
    from.iter().zip(&to).map(|(p, q)| p.exp() * (p - q)).sum()
}
