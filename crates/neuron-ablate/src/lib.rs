//! Ablation of MLP neurons and attention heads of language models (`neox-core` lists the families): total and direct effects, KL, causal
//! mediation.
//!
//! For neurons of the last layer one forward per sequence gives the residual stream; everything after it is a closed form (see
//! [`closed_form`]), so that an ablated vocabulary of logits costs a few operations per entry; for others
//! the model runs on from their layer ([`Sweep::run_neurons`], [`Sweep::run_heads`]). Nothing
//! here reads files or configurations: models come from `neox-core`, frequencies as plain slices. [The methods] have the formulas.
//!
//! ```
//! use neox_core::{LoadOptions, Model};
//! use neuron_ablate::{Measure, Plan, Sample, Sweep, TokenFrequencies, Variant};
//!
//! # let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/step4000"));
//! # if !folder.exists() { return Ok(()); } // the crate without its repository
//! let model = Model::load(folder, &LoadOptions::default())?;
//! let d_vocab = usize::try_from(model.config().vocab_size)?;
//! let texts = vec![vec![0, 259, 1042, 17, 300], vec![0, 12, 77, 2000, 5]]; // token ids, 0 is BOS
//! let sample = Sample::new(texts, &[0], d_vocab)?;
//! let frequencies = TokenFrequencies::new(vec![1.0 / d_vocab as f64; d_vocab])?;
//! let plan = Plan::new(vec![3, 105], vec![0, 1]); // neurons of the last layer, places in the sample
//! let effects = Sweep::new(&model, &sample, &frequencies, vec![], plan)?.run()?;
//! let loss = effects.neurons[0].effects.change(Variant::Total, Measure::Loss)?;
//! assert!(loss.mean_abs > 0.0); // nats
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Words are scored under [`Intervention`]s ([`Scorer::score`]) or hooks of one's own ([`Scorer::score_with`]). Of a model that `neox-core`
//! does not know, the last layer is enough: its tensors and a function that runs it ([`LastLayer`]).
//!
//! Token ids are `i64` here and in `neox-core`, as tensors hold them; tokenizers and the crates of corpora have `u32`, which what takes
//! a band ([`TokenBand::new`], [`RareTokens::of_band`]) takes too.
//!
//! Threads: a `Sweep` and a `Scorer` borrow the model, which is not `Sync`, and so stay on its thread; they use all cores themselves.
//!
//! [The methods]: https://github.com/longtail-neurons/longtail-neurons/blob/main/docs/methods.md

mod activity;
pub mod closed_form;
mod cuda;
mod dose;
mod effects;
mod engine;
mod error;
mod frequency;
mod interventions;
mod keys;
mod last_layer;
mod means;
mod mlp_write;
mod null_space;
mod outcome;
mod pairs;
mod product;
mod progress;
mod readout;
mod replaced;
mod row_logits;
mod sample;
mod sample_states;
mod scaling;
mod scoring;
mod self_check;
mod semantics;
mod series;
mod sets;
mod states;
mod sweep;
mod tensor_sums;
mod trade_off;
mod variant;
mod vectors;
mod weight_statistics;
mod word_request;

pub use activity::{Activity, activities};
pub use dose::Dose;
pub use effects::{Change, EffectSums, Mean, NeuronEffects, Over};
pub use engine::{Engine, EngineOptions, EngineReport, ExactSums};
pub use error::AblateError;
pub use frequency::{TokenBand, TokenFrequencies};
pub use interventions::{
    Intervention, InterventionError, InterventionHooks, NeuronSite, Operation,
};
pub use last_layer::LastLayer;
pub use means::{
    LayerMeans, MeanOf, Means, SampleMeans, layer_means, mean_activations, sample_means,
};
pub use mlp_write::{output_directions, output_norms};
pub use neuron_id::NeuronId;
pub use null_space::{Keep, NullRows, NullSpace, NullSpaceOptions, Subspace};
pub use outcome::Measure;
pub use progress::Tick;
pub use readout::{NormScale, Readout};
pub use replaced::{ForwardCost, HeadId};
pub use sample::{FIRST_POSITION, Row, RowCounts, Sample};
pub use sample_states::SampleStates;
pub use scaling::{RareTokens, ScalingError, ScalingLaw, Target, WeightChange};
pub use scoring::{ScoreError, Scorer, WordScore};
pub use self_check::{Difference, SelfCheck, self_check, self_check_neurons};
pub use semantics::{
    BandToken, Direction, FrozenKl, KlDirection, MeanOver, OutsideBand, Semantics,
};
pub use sets::{NestedSets, SetEffects};
pub use states::{LastLayerStates, last_layer_states};
pub use surprisal_metrics::mediated_share;
pub use sweep::{Effects, HeadEffects, PairBlock, Plan, Ranks, Sink, Sweep};
pub use trade_off::{
    NamedChange, ScalingCost, ScalingEffects, ScalingMeasure, ScalingPlan, TargetGroup,
    measure_scaling, scaling_cost,
};
pub use variant::{Variant, Variants};
pub use vectors::Vectors;
pub use weight_statistics::{NullDirections, UnembeddingMoments, WeightStatistics};
pub use word_request::{Join, RequestError, WordBoundary, WordRequest, WordStart, WordVocabulary};
/// The crates whose types are part of this one's interface.
pub use {neox_core, surprisal_metrics};
