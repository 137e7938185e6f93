//! What can go wrong between a loaded model and a table of effects.

use std::fmt::Debug;

use surprisal_metrics::MetricError;
use tch::TchError;

/// Why effects could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AblateError {
    /// The frequencies are not a distribution.
    #[error("token frequencies are not usable: {what}")]
    Frequency {
        /// What was found and expected.
        what: String,
    },
    /// The model and the frequencies do not belong together.
    #[error("frequencies of {frequencies} tokens, but the model's vocabulary has {d_vocab} rows")]
    Vocabulary {
        /// Number of frequencies.
        frequencies: usize,
        /// Rows of `W_U`.
        d_vocab: usize,
    },
    /// All tokens of a band are equally frequent, so no direction tells rare from common.
    #[error(
        "tokens looked at: {tokens}, all of the same frequency, so there is no frequency direction: choose a wider band"
    )]
    FlatDirection {
        /// Number of tokens looked at.
        tokens: usize,
    },
    /// A band is not usable.
    #[error("band `{name}`: {what}")]
    Band {
        /// The band.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A neuron outside the layer was asked for.
    #[error("neuron {neuron} asked for, but the last MLP layer has neurons 0 to {last}")]
    NoSuchNeuron {
        /// The neuron.
        neuron: usize,
        /// The last one that exists.
        last: usize,
    },
    /// A layer, neuron or head outside the model was asked for.
    #[error("there is no {what}: the model has {has}")]
    NoSuchComponent {
        /// What was asked for.
        what: String,
        /// What there is.
        has: String,
    },
    /// A dose that heads cannot have.
    #[error(
        "`clip-at-mean` is a dose for the activation of a neuron, and the output of a head has many values: choose `mean` or a factor such as `{{scale: 0}}`"
    )]
    HeadDose,
    /// The direct effect is not among the variants.
    #[error(
        "the semantics report `{variant}` as the direct effect, but it is not among the variants: add it"
    )]
    DirectEffect {
        /// The variant.
        variant: String,
    },
    /// A setting is out of its range.
    #[error("`{name}` is {value}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What would do.
        expected: String,
    },
    /// A set of neurons is not usable, or changing it is not.
    #[error("neuron sets `{name}`: {what}")]
    Set {
        /// The list that the set is the beginning of.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// What is asked for has no closed form in this model.
    #[error(
        "a model of family `{family}` has {what}: the output weights of its neurons cannot be scaled by a factor (rows of the unembedding can)"
    )]
    Architecture {
        /// Its `model_type`.
        family: &'static str,
        /// What is in the way.
        what: &'static str,
    },
    /// Weights are not numbers.
    #[error("{what} holds a value that is not finite: audit the checkpoint, and try `f32`")]
    NotFiniteWeights {
        /// Which weights.
        what: &'static str,
    },
    /// Nothing to do.
    #[error("{what}")]
    Empty {
        /// What is missing, and what to try.
        what: String,
    },
    /// A sequence that is not in the sample was asked for.
    #[error("sequence {sequence} asked for, but the sample has sequences 0 to {last}")]
    NoSuchSequence {
        /// The sequence.
        sequence: usize,
        /// The last one that exists.
        last: usize,
    },
    /// Documents that do not go with the sequences.
    #[error("documents of {found} sequences are given, but the sample has {sequences}")]
    Documents {
        /// How many were given.
        found: usize,
        /// How many sequences there are.
        sequences: usize,
    },
    /// A list names something twice: what it stands for would be counted twice.
    #[error("{what} {item} is named twice, as entries {} and {}, and each may stand once", places[0] + 1, places[1] + 1)]
    Repeated {
        /// What the list is of.
        what: &'static str,
        /// What stands twice.
        item: String,
        /// Where in the list, from 0.
        places: [usize; 2],
    },
    /// A tensor of another shape than the others ask for.
    #[error("shape of {what}: {found:?}, expected {expected:?}")]
    Shape {
        /// What the tensor is.
        what: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// What would do.
        expected: Vec<i64>,
    },
    /// The forward of a model that is not ours failed.
    #[error("the forward that was given with the last layer failed")]
    OwnForward {
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something needs the whole model, and there is its last layer alone.
    #[error(
        "{what} needs the whole model, and there is its last layer alone: give a model of ours (`Sweep::new`, `Scorer::new`)"
    )]
    LastLayerOnly {
        /// What was asked for.
        what: &'static str,
    },
    /// A token id is not a row of the embedding.
    #[error(
        "token id {token} at sequence {sequence}, position {pos} is beyond the model's vocabulary of {d_vocab}"
    )]
    TokenBeyondVocabulary {
        /// The id.
        token: i64,
        /// Which sequence.
        sequence: usize,
        /// Which position in it.
        pos: usize,
        /// Rows of the embedding.
        d_vocab: usize,
    },
    /// The clean logits of a row are not numbers.
    #[error(
        "the clean logits at sequence {sequence}, position {pos} are not finite: the checkpoint is broken or overflows in its dtype; try `f32`, and audit the weights"
    )]
    NotFiniteClean {
        /// Which sequence.
        sequence: usize,
        /// Which position in it.
        pos: usize,
    },
    /// The logits of a pair are not numbers.
    #[error(
        "ablating neuron {neuron} at sequence {sequence}, position {pos} gives logits that are not finite: audit its weights and activations"
    )]
    NotFinite {
        /// The neuron.
        neuron: usize,
        /// Which sequence.
        sequence: usize,
        /// Which position in it.
        pos: usize,
    },
    /// The logits after running the model on are not numbers.
    #[error(
        "replacing {component} gives logits that are not finite at sequence {sequence}, position {pos}: audit the weights and activations, or choose a smaller dose"
    )]
    NotFiniteChange {
        /// What was replaced.
        component: String,
        /// Which sequence.
        sequence: usize,
        /// Which position in it.
        pos: usize,
    },
    /// A value was asked for that the sweep did not measure.
    #[error(
        "{what} was not measured, but {measured}: the variants of the plan and the bands of the sweep decide"
    )]
    NotMeasured {
        /// What was asked for.
        what: String,
        /// What there is instead.
        measured: String,
    },
    /// An interval could not be computed.
    #[error("no interval of an effect could be computed")]
    Interval(#[from] MetricError),
    /// The consumer of the rows failed.
    #[error("failed to hand over rows of effects")]
    Sink {
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The forward pass failed.
    #[error("the forward pass failed")]
    Forward(#[from] neox_core::ForwardError),
    /// libtorch reported an error.
    #[error("libtorch failed")]
    Torch(#[from] TchError),
}

/// Refuses a list that names something twice.
pub(crate) fn distinct<T: PartialEq + Debug>(
    what: &'static str,
    list: &[T],
) -> Result<(), AblateError> {
    let repeated = list
        .iter()
        .enumerate()
        .find_map(|(i, item)| Some([list[..i].iter().position(|other| other == item)?, i]));
    match repeated {
        None => Ok(()),
        Some(places) => Err(AblateError::Repeated {
            what,
            item: format!("{:?}", list[places[1]]),
            places,
        }),
    }
}
