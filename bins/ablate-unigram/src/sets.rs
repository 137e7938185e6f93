//! Sets of neurons at several doses: the ranked list and its controls, the figures.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use job_kit::{
    Progress, RunRecord,
    plot::{Axis, Color, Figure, Mark},
};
use neox_core::Model;
use neuron_ablate::{
    AblateError, Dose, LayerMeans, Mean, Measure, NestedSets, Over, SetEffects, Sweep, Tick,
    Variant, output_norms,
};
use neuron_select::{Candidate, ControlKind, NeuronId, draw_controls};
use surprisal_metrics::{Bootstrap, Group, Interval};

use crate::config::{ControlsConfig, SetsConfig};

/// Distance between the error bars of neighbouring lines, in distances between sizes.
const DODGE: f64 = 0.06;

/// Colours of the doses, in their order.
const COLORS: [Color; 7] = [
    Color::Blue,
    Color::Vermilion,
    Color::Green,
    Color::Orange,
    Color::Purple,
    Color::Sky,
    Color::Black,
];

/// The ranked list, checked before the sweep starts.
pub(crate) struct Selected {
    sets: NestedSets<NeuronId>,
}

/// All lists of a run: the selected neurons, then the controls.
pub(crate) struct SetRun {
    pub(crate) lists: Vec<NestedSets<NeuronId>>,
    /// What the lists are, `[list]`.
    pub(crate) roles: Vec<Role>,
    pub(crate) effects: Vec<SetEffects>,
}

/// What a list of neurons stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Selected,
    Control { kind: ControlKind, draw: usize },
}

impl Selected {
    /// Reads the list and fits the sizes to it.
    pub(crate) fn read(
        config: &SetsConfig,
        model: &Model,
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let neurons = config
            .neurons
            .resolve(record)
            .context("failed to read the ranked neurons (`sets.neurons`)")?;
        let (last, d_mlp) = (
            model.config().num_hidden_layers - 1,
            usize::try_from(model.config().intermediate_size)?,
        );
        if let Some(neuron) = neurons.iter().find(|n| n.layer > last || n.neuron >= d_mlp) {
            bail!(
                "there is no neuron {neuron} of `sets.neurons`: the model has layers 0 to {last} of neurons 0 to {}",
                d_mlp - 1
            );
        }
        if config.doses.is_empty() {
            bail!("`sets.doses` is empty: name a dose, such as `mean` or `{{scale: 0.5}}`");
        }
        let sets = match &config.sizes {
            Some(sizes) => NestedSets::new("selected", neurons, sizes.clone()),
            None => NestedSets::doubling("selected", neurons),
        };
        let sets = sets.context("failed to make sets of neurons (`sets.neurons`, `sets.sizes`)")?;
        let selected = Self { sets };
        let controls = !config.controls.kinds.is_empty() && config.controls.draws > 0;
        for layer in selected.layers().filter(|_| controls) {
            let ranked = selected.sets.ranked().iter();
            let needed = ranked.filter(|n| n.layer == layer).count();
            if needed > d_mlp - needed {
                bail!(
                    "`sets.controls` needs {needed} neurons outside `sets.neurons`, but layer {layer} has {} others: shorten the list with `sets.neurons.top`, or set `sets.controls.draws=0`",
                    d_mlp - needed
                );
            }
        }
        Ok(selected)
    }

    /// The layers that have neurons of the list.
    pub(crate) fn layers(&self) -> impl Iterator<Item = usize> {
        let layers: BTreeSet<usize> = self.sets.ranked().iter().map(|n| n.layer).collect();
        layers.into_iter()
    }

    /// Draws the controls and measures all lists; `means` are those of the lists' layers.
    ///
    /// Lists of the last layer alone have a closed form; for others the model runs on.
    pub(crate) fn run(
        self,
        config: &SetsConfig,
        sweep: &Sweep<'_>,
        model: &Model,
        means: &LayerMeans,
        seed: u64,
        record: &mut RunRecord,
    ) -> anyhow::Result<SetRun> {
        let (mut lists, mut roles) = (Vec::new(), Vec::new());
        let controls = self.controls(&config.controls, model, means, seed)?;
        for (role, sets) in [(Role::Selected, self.sets)].into_iter().chain(controls) {
            lists.push(sets);
            roles.push(role);
        }
        let pairs = sweep.set_pairs(&lists, &config.doses)? as u64;
        let progress = Progress::new("sets", pairs, "pairs");
        let hear = |tick: Tick| {
            if let Tick::Pairs(more) = tick {
                progress.inc(more as u64);
            }
        };
        let last = model.config().num_hidden_layers - 1;
        let in_last: Option<Vec<NestedSets>> = lists.iter().map(|l| l.in_layer(last)).collect();
        let effects = match in_last {
            Some(in_last) => {
                let mean = means.neurons(last).unwrap_or_default();
                sweep.run_sets(&in_last, &config.doses, mean, &hear)?
            }
            None => sweep.run_sets_on(&lists, &config.doses, means, &hear)?,
        };
        record.timing("sets", progress.finish());
        let named: serde_json::Map<String, serde_json::Value> = lists
            .iter()
            .map(|list| (list.name().to_owned(), named(list.ranked())))
            .collect();
        record.note("sets", named);
        record.count("set_pairs", pairs);
        Ok(SetRun {
            lists,
            roles,
            effects,
        })
    }

    /// Control `i` of a set stands for its `i`-th neuron, so that controls are nested as the sets are.
    fn controls(
        &self,
        config: &ControlsConfig,
        model: &Model,
        means: &LayerMeans,
        seed: u64,
    ) -> anyhow::Result<Vec<(Role, NestedSets<NeuronId>)>> {
        let mut candidates = Vec::new();
        for layer in self.layers() {
            let norms = output_norms(model, layer)?;
            candidates.extend(Candidate::of_layer(layer, means.neurons(layer), &norms));
        }
        let mut lists = Vec::new();
        for &kind in &config.kinds {
            for set in draw_controls(kind, self.sets.ranked(), &candidates, config.draws, seed)? {
                let neurons = set.neurons;
                let name = format!("{}-{}", kind.name(), set.draw);
                lists.push((
                    Role::Control {
                        kind,
                        draw: set.draw,
                    },
                    NestedSets::new(name, neurons, self.sets.sizes().to_vec())?,
                ));
            }
        }
        Ok(lists)
    }
}

/// Neurons of a list as text.
fn named(neurons: &[NeuronId]) -> serde_json::Value {
    neurons.iter().map(ToString::to_string).collect()
}

/// `mean`, `scale 0.5`, `clip-at-mean`.
pub(crate) fn dose_name(dose: Dose) -> String {
    match dose {
        Dose::Mean => "mean".into(),
        Dose::Scale(factor) => format!("scale {factor}"),
        Dose::ClipAtMean => "clip-at-mean".into(),
    }
}

impl SetRun {
    /// Whether there are long-tail targets; all targets count otherwise.
    fn over(&self) -> Over {
        match self.effects.iter().any(|set| set.effects.band_rows() > 0) {
            true => Over::Band,
            false => Over::All,
        }
    }

    fn targets(&self) -> &'static str {
        match self.over() {
            Over::Band => "long-tail tokens",
            Over::All => "all tokens",
        }
    }

    fn doses(&self) -> Vec<Dose> {
        let mut doses: Vec<Dose> = Vec::new();
        for set in &self.effects {
            if !doses.contains(&set.dose) {
                doses.push(set.dose);
            }
        }
        doses
    }

    fn sizes(&self) -> &[usize] {
        self.lists.first().map_or(&[], |list| list.sizes())
    }

    /// Kinds of controls, in their order.
    fn kinds(&self) -> Vec<ControlKind> {
        let mut kinds = Vec::new();
        for role in &self.roles {
            if let Role::Control { kind, .. } = role
                && !kinds.contains(kind)
            {
                kinds.push(*kind);
            }
        }
        kinds
    }

    /// Mean change of the loss of a set at a dose: of the selected neurons, or over all draws of a control; with the interval over
    /// sequences where there are several.
    fn loss_change(
        &self,
        kind: Option<ControlKind>,
        size: usize,
        dose: Dose,
        bootstrap: &Bootstrap,
    ) -> Result<Option<(f64, Option<Interval>)>, AblateError> {
        let wanted = |set: &&SetEffects| {
            let role = match self.roles[set.list] {
                Role::Selected => None,
                Role::Control { kind, .. } => Some(kind),
            };
            role == kind && set.size == size && set.dose == dose
        };
        let mut groups: Vec<Group> = Vec::new();
        for set in self.effects.iter().filter(wanted) {
            let of_set =
                set.effects
                    .groups(Variant::Total, Measure::Loss, Mean::Signed, self.over())?;
            groups.resize(of_set.len(), Group::default());
            for (sum, more) in groups.iter_mut().zip(of_set) {
                sum.sum += more.sum;
                sum.count += more.count;
            }
        }
        let (sum, count) = groups
            .iter()
            .fold((0.0, 0.0), |(s, c), g| (s + g.sum, c + g.count));
        let interval = (bootstrap.resamples > 0)
            .then(|| bootstrap.mean(&groups).ok().flatten())
            .flatten();
        Ok((count > 0.0).then(|| (sum / count, interval)))
    }

    /// A line with an error bar at each size, moved aside so that bars of several lines stand side by side.
    fn line(
        &self,
        name: &str,
        kind: Option<ControlKind>,
        dose: Dose,
        bootstrap: &Bootstrap,
        (color, shift): (Color, f64),
    ) -> Result<[Mark; 2], AblateError> {
        let (mut points, mut intervals) = (Vec::new(), Vec::new());
        for (place, &size) in self.sizes().iter().enumerate() {
            if let Some((mean, interval)) = self.loss_change(kind, size, dose, bootstrap)? {
                points.push((place as f64 + shift, mean));
                intervals.push(interval.map(|i| (i.lower, i.upper)));
            }
        }
        let line = Mark::line(name, points.clone()).color(color);
        Ok([
            if kind.is_some() { line.dashed() } else { line },
            Mark::points("", points)
                .intervals(intervals)
                .color(color)
                .radius(3.5),
        ])
    }

    fn figure(&self, title: &str) -> Figure {
        Figure::new(
            title,
            Axis::categories(
                "neurons changed together",
                self.sizes().iter().map(usize::to_string),
            ),
            Axis::linear(&format!(
                "mean change of the loss on {} (nats)",
                self.targets()
            )),
        )
        .mark(Mark::horizontal("", 0.0))
    }

    /// The curve of effect against group size, a line per dose.
    pub(crate) fn doses_figure(&self, bootstrap: &Bootstrap) -> Result<Figure, AblateError> {
        let doses = self.doses();
        let middle = (doses.len() as f64 - 1.0) / 2.0;
        let mut figure = self.figure("Selected neurons changed together, by dose");
        for (i, dose) in doses.into_iter().enumerate() {
            let look = (COLORS[i % COLORS.len()], (i as f64 - middle) * DODGE);
            figure = figure.marks(self.line(&dose_name(dose), None, dose, bootstrap, look)?);
        }
        Ok(figure)
    }

    /// The first dose against its controls, each the mean of its draws.
    pub(crate) fn controls_figure(
        &self,
        bootstrap: &Bootstrap,
    ) -> Result<Option<Figure>, AblateError> {
        let (kinds, doses) = (self.kinds(), self.doses());
        let Some(&dose) = doses.first().filter(|_| !kinds.is_empty()) else {
            return Ok(None);
        };
        let title = format!("Selected neurons and controls, dose: {}", dose_name(dose));
        let mut figure = self.figure(&title);
        for kind in kinds {
            let (name, look) = match kind {
                ControlKind::Random => ("random controls", (Color::Grey, -DODGE)),
                ControlKind::Matched => ("matched controls", (Color::Orange, DODGE)),
            };
            figure = figure.marks(self.line(name, Some(kind), dose, bootstrap, look)?);
        }
        let selected = self.line("selected", None, dose, bootstrap, (Color::Blue, 0.0))?;
        Ok(Some(figure.marks(selected)))
    }

    /// A row per dose and size: the selected neurons and their controls.
    pub(crate) fn summary(&self, bootstrap: &Bootstrap) -> Result<String, AblateError> {
        let kinds = self.kinds();
        let mut text = format!(
            "Sets of selected neurons changed together; mean change of the loss on {} (nats):\n\n{:<14}{:>8}  {:>34}",
            self.targets(),
            "dose",
            "neurons",
            "selected"
        );
        for kind in &kinds {
            text += &format!("  {:>18}", format!("{} controls", kind.name()));
        }
        text.push('\n');
        for dose in self.doses() {
            for &size in self.sizes() {
                let shown = match self.loss_change(None, size, dose, bootstrap)? {
                    Some((mean, Some(i))) => {
                        format!("{mean:+.6} ({:+.6} to {:+.6})", i.lower, i.upper)
                    }
                    Some((mean, None)) => format!("{mean:+.6}"),
                    None => "-".into(),
                };
                text += &format!("{:<14}{size:>8}  {shown:>34}", dose_name(dose));
                for &kind in &kinds {
                    let shown = self
                        .loss_change(Some(kind), size, dose, bootstrap)?
                        .map_or("-".into(), |(mean, _)| format!("{mean:+.6}"));
                    text += &format!("  {shown:>18}");
                }
                text.push('\n');
            }
        }
        text.push('\n');
        Ok(text)
    }
}
