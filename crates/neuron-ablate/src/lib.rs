//! Ablation of MLP neurons and attention heads of language models (`neox-core` lists the families): total and direct effects, KL, causal
//! mediation.
//!
//! For neurons of the last layer one forward per sequence gives the residual stream; everything after it is a closed form (see
//! [`closed_form`]), so that an ablated vocabulary of logits costs a few operations per entry; for others
//! the model runs on from their layer ([`Sweep::run_neurons`], [`Sweep::run_heads`]). Nothing
//! here reads files or configurations: models come from `neox-core`, frequencies as plain slices.

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
mod means;
mod mlp_write;
mod null_space;
mod outcome;
mod pairs;
mod product;
mod readout;
mod replaced;
mod sample;
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
mod vectors;
mod weight_statistics;
mod word_request;

pub use activity::{Activity, activities};
pub use dose::Dose;
pub use effects::{
    Change, EffectSums, Mean, NeuronEffects, Over, Variant, Variants, mediated_share,
};
pub use engine::{Engine, EngineOptions, EngineReport, ExactSums};
pub use error::AblateError;
pub use frequency::{TokenBand, TokenFrequencies};
pub use interventions::{
    Intervention, InterventionError, InterventionHooks, NeuronSite, Operation,
};
pub use means::{MeanOf, Means, SampleMeans, layer_means, mean_activations, sample_means};
pub use mlp_write::{output_directions, output_norms};
pub use neuron_id::NeuronId;
pub use null_space::{Keep, NullSpace, NullSpaceOptions, Subspace};
pub use outcome::Measure;
pub use readout::{NormScale, Readout};
pub use replaced::{HeadId, LayerMeans};
pub use sample::{FIRST_POSITION, Row, RowCounts, Sample};
pub use scaling::{RareTokens, ScalingError, ScalingLaw, Target, WeightChange};
pub use scoring::{ScoreError, Scorer, WordScore};
pub use self_check::{Difference, SelfCheck, self_check, self_check_neurons};
pub use semantics::{
    BandToken, Direction, FrozenKl, KlDirection, MeanOver, OutsideBand, Semantics,
};
pub use sets::{NestedSets, SetEffects};
pub use states::{LastLayerStates, last_layer_states};
pub use sweep::{Effects, ForwardCost, HeadEffects, PairBlock, Plan, Ranks, Sink, Sweep, Tick};
pub use trade_off::{
    NamedChange, ScalingEffects, ScalingMeasure, ScalingPlan, TargetGroup, measure_scaling,
};
pub use vectors::Vectors;
pub use weight_statistics::{NullDirections, UnembeddingMoments, WeightStatistics};
pub use word_request::{Join, RequestError, WordBoundary, WordRequest, WordStart, WordVocabulary};
