//! Sets of neurons at several doses: the ranked list and its controls, the figures.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use job_inputs::{MeasuredOn, note_overlap};
use job_kit::{
    Progress, RunRecord,
    plot::{Axis, Color, Figure, Mark},
};
use neox_core::Model;
use neuron_ablate::{
    AblateError, Activity, Dose, LayerMeans, Mean, Measure, NestedSets, Over, SetEffects, Sweep,
    Tick, Variant, activities, output_norms,
};
use neuron_select::{
    Candidate, ControlKind, Controls, MatchOn, NeuronId, Pool, Push, TraitBalance, q_values, rank_p,
};
use surprisal_metrics::{Bootstrap, Group, Interval};

use crate::config::SetsConfig;

/// The place of the long-tail band among the bands.
const LONG_TAIL: usize = 0;

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
    /// How alike the selected neurons and their controls are.
    pub(crate) balance: Vec<TraitBalance>,
    /// [`Controls::matched_spread`].
    matched_spread: f64,
}

/// What a list of neurons stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Selected,
    /// The selected neurons that have matched controls, where some have none: what these are held against.
    MatchedSelection,
    Control {
        kind: ControlKind,
        draw: usize,
    },
    /// The selected neurons, each exchanged for one alike or kept: what the test beside matched controls ranks them among.
    Exchanged {
        draw: usize,
    },
}

impl Role {
    /// The column `control`.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Self::Selected => None,
            Self::MatchedSelection => Some("matched-selection"),
            Self::Control { kind, .. } => Some(kind.name()),
            Self::Exchanged { .. } => Some("exchanged"),
        }
    }

    /// The column `draw`.
    pub(crate) fn draw(self) -> Option<usize> {
        match self {
            Self::Selected | Self::MatchedSelection => None,
            Self::Control { draw, .. } | Self::Exchanged { draw } => Some(draw),
        }
    }
}

/// The mean change of the loss of a set held against that of one kind of controls, nats.
#[derive(Debug, Clone)]
pub(crate) struct SetContrast {
    pub(crate) dose: Dose,
    pub(crate) size: usize,
    pub(crate) kind: ControlKind,
    pub(crate) draws: usize,
    /// Of the set; beside matched controls of the neurons that have some.
    pub(crate) change: f64,
    /// Mean over the draws.
    pub(crate) of_controls: f64,
    /// Over documents and draws.
    pub(crate) of_controls_interval: Option<Interval>,
    /// Over documents and draws, the set a draw too; the estimate is the difference.
    pub(crate) interval: Option<Interval>,
    pub(crate) p: Option<f64>,
    /// Over all doses and sizes.
    pub(crate) q: Option<f64>,
    pub(crate) clusters: usize,
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

    /// Says where the sets are measured on the text that selected their neurons.
    pub(crate) fn note_overlap(
        config: &SetsConfig,
        measured: MeasuredOn<'_>,
        record: &mut RunRecord,
    ) -> anyhow::Result<()> {
        let file = (config.neurons.file.as_deref(), "sets.neurons.file");
        let instead = "measure other text (`corpus.rows`, `ablation.sequences`)";
        note_overlap(file, Some(measured), instead, record)?;
        Ok(())
    }

    /// How many sets and doses are measured, controls included, if every neuron has a match.
    pub(crate) fn count(&self, config: &SetsConfig) -> usize {
        let controls = &config.controls;
        let matched = controls.kinds.contains(&ControlKind::Matched);
        // Beside matched controls there are as many sets with exchanged neurons.
        let draws = controls.draws * (controls.kinds.len() + usize::from(matched));
        self.sets.sizes().len() * config.doses.len() * (1 + draws)
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
        (model, sequences): (&Model, &[usize]),
        means: &LayerMeans,
        seed: u64,
        record: &mut RunRecord,
    ) -> anyhow::Result<SetRun> {
        let pool = self.pool(config, sweep, (model, sequences), means)?;
        let drawn = config.controls.draw(self.sets.ranked(), &pool, seed);
        let drawn = drawn.context("failed to draw control sets (`sets.controls`)")?;
        if !drawn.unmatched.is_empty() {
            let names: Vec<String> = drawn.unmatched.iter().map(NeuronId::to_string).collect();
            record.warn(format!(
                "{} of {} neurons have no neuron alike within `sets.controls.caliper` = {} standard deviations and are left out where the others are held against matched controls: {}",
                names.len(),
                self.sets.ranked().len(),
                config.controls.caliper,
                names.join(", ")
            ));
        }
        let (mut lists, mut roles) = (Vec::new(), Vec::new());
        let controls = self.controls(&drawn, config.controls.draws, seed)?;
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
            matched_spread: drawn.matched_spread(),
            balance: drawn.balance,
        })
    }

    /// Every neuron of the lists' layers, with what controls are matched on. What a dose does to a neuron is, of the first dose, how far its
    /// activations are from where it takes them: the mean, or 0 where they are scaled.
    fn pool(
        &self,
        config: &SetsConfig,
        sweep: &Sweep<'_>,
        (model, sequences): (&Model, &[usize]),
        means: &LayerMeans,
    ) -> anyhow::Result<Pool> {
        let layers: Vec<usize> = self.layers().collect();
        if config.controls.match_on == MatchOn::ActivationAndNorm {
            let mut candidates = Vec::new();
            for layer in layers {
                let norms = output_norms(model, layer)?;
                candidates.extend(Candidate::of_layer(layer, means.neurons(layer), &norms));
            }
            return Ok(Pool::ActivationAndNorm(candidates));
        }
        // Nothing is drawn: no forward is needed.
        let layers = if config.controls.draws == 0 {
            Vec::new()
        } else {
            layers
        };
        let towards = |id: NeuronId| match config.doses[0] {
            Dose::Scale(_) => 0.0,
            Dose::Mean | Dose::ClipAtMean => {
                let mean = means
                    .neurons(id.layer)
                    .and_then(|means| means.get(id.neuron));
                mean.copied().unwrap_or_default()
            }
        };
        let found = activities(sweep.states(), sequences, &layers, &|_| ())?;
        let of_layers = found.into_iter().flat_map(|(layer, found)| {
            let ids = (0..).map(move |neuron| NeuronId { layer, neuron });
            ids.zip(found)
        });
        let candidate = |(neuron, activity): (NeuronId, Activity)| Candidate {
            neuron,
            traits: Push {
                length: activity.change_length(towards(neuron)),
                active_share: activity.active_share,
                active_loss: activity.active_loss,
            }
            .traits(),
        };
        Ok(Pool::Intervention(of_layers.map(candidate).collect()))
    }

    /// Control `i` of a set stands for its `i`-th neuron, so that controls are nested as the sets are.
    fn controls(
        &self,
        drawn: &Controls,
        draws: usize,
        seed: u64,
    ) -> anyhow::Result<Vec<(Role, NestedSets<NeuronId>)>> {
        let mut found: Vec<(Role, Vec<NeuronId>)> = Vec::new();
        found.extend(drawn.sets.iter().map(|set| {
            let (kind, draw) = (set.kind, set.draw);
            (Role::Control { kind, draw }, set.neurons.clone())
        }));
        let exchanged = drawn.exchanged(draws, seed).into_iter().enumerate();
        found.extend(exchanged.map(|(draw, set)| (Role::Exchanged { draw }, set)));
        if !drawn.matched.is_empty() && !drawn.unmatched.is_empty() {
            found.push((Role::MatchedSelection, drawn.matched.clone()));
        }
        let mut lists = Vec::with_capacity(found.len());
        for (role, neurons) in found {
            let parts = [
                role.name().map(str::to_owned),
                role.draw().map(|d| d.to_string()),
            ];
            let name = parts.into_iter().flatten().collect::<Vec<_>>().join("-");
            // Where some have no match, the lists are shorter.
            let mut sizes = self.sets.sizes().to_vec();
            sizes.retain(|&size| size <= neurons.len());
            if sizes.is_empty() {
                sizes.push(neurons.len());
            }
            lists.push((role, NestedSets::new(name, neurons, sizes)?));
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
        match self
            .effects
            .iter()
            .any(|set| set.effects.band_rows(LONG_TAIL) > 0)
        {
            true => Over::Band(LONG_TAIL),
            false => Over::All,
        }
    }

    fn targets(&self) -> &'static str {
        match self.over() {
            Over::Band(_) => "long-tail tokens",
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

    /// The sizes of all lists, ascending: where only some neurons have a match, theirs may be another.
    fn all_sizes(&self) -> BTreeSet<usize> {
        let sizes = self.lists.iter().flat_map(|list| list.sizes());
        sizes.copied().collect()
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

    /// Changes of the loss by cluster, of each list whose role is wanted, at one size and dose.
    fn cells(
        &self,
        wanted: impl Fn(Role) -> bool,
        size: usize,
        dose: Dose,
    ) -> Result<Vec<Vec<Group>>, AblateError> {
        let sets = self
            .effects
            .iter()
            .filter(|set| wanted(self.roles[set.list]) && set.size == size && set.dose == dose);
        sets.map(|set| {
            let (variant, measure) = (Variant::Total, Measure::Loss);
            set.effects
                .groups(variant, measure, Mean::Signed, self.over())
        })
        .collect()
    }

    /// Mean change of the loss of a set at a dose: of the selected neurons, with the interval over clusters, or over all draws of a
    /// control, with that over clusters and draws; none where there are too few.
    fn loss_change(
        &self,
        kind: Option<ControlKind>,
        size: usize,
        dose: Dose,
        bootstrap: &Bootstrap,
    ) -> Result<Option<(f64, Option<Interval>)>, AblateError> {
        let cells = self.cells(
            |role| match (role, kind) {
                (Role::Selected, None) => true,
                (Role::Control { kind, .. }, Some(wanted)) => kind == wanted,
                _ => false,
            },
            size,
            dose,
        )?;
        let interval = match (&cells[..], kind) {
            _ if bootstrap.resamples == 0 => None,
            ([own], None) => bootstrap.mean(own).ok().flatten(),
            (draws, _) => bootstrap.two_way(draws).ok().flatten(),
        };
        let mean = Group::total(&cells.concat()).mean();
        Ok(mean.map(|mean| (mean, interval)))
    }

    /// Every dose and size against every kind of controls: the mean change of the loss.
    pub(crate) fn contrasts(&self, bootstrap: &Bootstrap) -> anyhow::Result<Vec<SetContrast>> {
        let mut contrasts = Vec::new();
        for kind in self.kinds() {
            let mut of_kind = Vec::new();
            for dose in self.doses() {
                for size in self.all_sizes() {
                    of_kind.extend(self.contrast(kind, dose, size, bootstrap)?);
                }
            }
            let p: Vec<Option<f64>> = of_kind.iter().map(|contrast| contrast.p).collect();
            for (contrast, q) in of_kind.iter_mut().zip(q_values(&p)) {
                contrast.q = q;
            }
            contrasts.extend(of_kind);
        }
        Ok(contrasts)
    }

    fn contrast(
        &self,
        kind: ControlKind,
        dose: Dose,
        size: usize,
        bootstrap: &Bootstrap,
    ) -> anyhow::Result<Option<SetContrast>> {
        let cells = |wanted: &dyn Fn(Role) -> bool| self.cells(wanted, size, dose);
        let is_control = |role| matches!(role, Role::Control { kind: k, .. } if k == kind);
        let controls = cells(&is_control)?;
        let held_against = match kind {
            ControlKind::Matched if self.roles.contains(&Role::MatchedSelection) => {
                Role::MatchedSelection
            }
            _ => Role::Selected,
        };
        let own = cells(&|role| role == held_against)?.pop();
        let (like, wider) = match kind {
            ControlKind::Random => (controls.clone(), 1.0),
            ControlKind::Matched => {
                let exchanged = cells(&|role| matches!(role, Role::Exchanged { .. }))?;
                (exchanged, self.matched_spread)
            }
        };
        let means = |sets: &[Vec<Group>]| -> Option<Vec<f64>> {
            sets.iter().map(|set| Group::total(set).mean()).collect()
        };
        let (Some(own), Some(of_controls), Some(of_like)) = (own, means(&controls), means(&like))
        else {
            return Ok(None);
        };
        let (Some(change), false) = (Group::total(&own).mean(), controls.is_empty()) else {
            return Ok(None);
        };
        let resampled = bootstrap.resamples > 0;
        Ok(Some(SetContrast {
            dose,
            size,
            kind,
            draws: controls.len(),
            change,
            of_controls: of_controls.iter().sum::<f64>() / of_controls.len() as f64,
            of_controls_interval: match resampled {
                true => bootstrap.two_way(&controls)?,
                false => None,
            },
            interval: match resampled {
                true => bootstrap.against(&own, &controls, (&like, wider))?,
                false => None,
            },
            p: rank_p(change, &of_like),
            q: None,
            clusters: Group::with_values(&own),
        }))
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
        // The dots of a line have a shape of its own; the points carry the error bars.
        Ok([
            Mark::points("", points.clone())
                .intervals(intervals)
                .color(color)
                .radius(1.0),
            Mark::line(name, points).color(color).with_dots(),
        ])
    }

    fn figure(&self, title: &str, about: &str) -> Figure {
        let first = self.effects.first().map(|set| &set.effects);
        let n = first.map_or(String::new(), |effects| {
            let over = self.over();
            let rows = match over {
                Over::All => effects.rows(),
                Over::Band(band) => effects.band_rows(band),
            };
            let clusters = effects.n_clusters_with_rows(over);
            format!("n = {rows} rows of {clusters} documents or sequences; ")
        });
        Figure::new(
            title,
            Axis::categories(
                "neurons changed together",
                self.sizes().iter().map(usize::to_string),
            ),
            Axis::linear(&format!(
                "mean change of the loss on {} (nats)",
                self.targets()
            ))
            .bulk(),
        )
        .subtitle(&format!("{n}{about}; error bars: 95 % intervals"))
        .mark(Mark::horizontal("", 0.0))
    }

    /// The curve of effect against group size, a line per dose.
    pub(crate) fn doses_figure(
        &self,
        about: &str,
        bootstrap: &Bootstrap,
    ) -> Result<Figure, AblateError> {
        let doses = self.doses();
        let middle = (doses.len() as f64 - 1.0) / 2.0;
        let mut figure = self.figure("Selected neurons changed together, by dose", about);
        for (i, dose) in doses.into_iter().enumerate() {
            let look = (COLORS[i % COLORS.len()], (i as f64 - middle) * DODGE);
            figure = figure.marks(self.line(&dose_name(dose), None, dose, bootstrap, look)?);
        }
        Ok(figure)
    }

    /// The first dose against its controls, each the mean of its draws.
    pub(crate) fn controls_figure(
        &self,
        about: &str,
        bootstrap: &Bootstrap,
    ) -> Result<Option<Figure>, AblateError> {
        let (kinds, doses) = (self.kinds(), self.doses());
        let Some(&dose) = doses.first().filter(|_| !kinds.is_empty()) else {
            return Ok(None);
        };
        let title = format!("Selected neurons and controls, dose: {}", dose_name(dose));
        let mut figure = self.figure(&title, about);
        for kind in kinds {
            let (name, look) = match kind {
                ControlKind::Random => ("random controls", (Color::Grey, -DODGE)),
                ControlKind::Matched => ("matched controls", (Color::Orange, DODGE)),
            };
            let of_kind =
                |role: &&Role| matches!(role, Role::Control { kind: k, .. } if *k == kind);
            let draws = self.roles.iter().filter(of_kind).count();
            let name = &format!("{name}, mean of {draws}");
            figure = figure.marks(self.line(name, Some(kind), dose, bootstrap, look)?);
        }
        let selected = self.line("selected", None, dose, bootstrap, (Color::Blue, 0.0))?;
        Ok(Some(figure.marks(selected)))
    }

    /// A row per dose and size: the selected neurons; then what they do more than their controls.
    pub(crate) fn summary(
        &self,
        bootstrap: &Bootstrap,
        contrasts: &[SetContrast],
    ) -> Result<String, AblateError> {
        let with_ends = |value: f64, interval: Option<Interval>| match interval {
            Some(i) => format!("{value:+.6} ({:+.6} to {:+.6})", i.lower, i.upper),
            None => format!("{value:+.6}"),
        };
        let mut text = format!(
            "Sets of selected neurons changed together; mean change of the loss on {} (nats):\n\n{:<14}{:>8}  {:>34}\n",
            self.targets(),
            "dose",
            "neurons",
            "selected"
        );
        for dose in self.doses() {
            for &size in self.sizes() {
                let shown = match self.loss_change(None, size, dose, bootstrap)? {
                    Some((mean, interval)) => with_ends(mean, interval),
                    None => "-".into(),
                };
                text += &format!("{:<14}{size:>8}  {shown:>34}\n", dose_name(dose));
            }
        }
        if !contrasts.is_empty() {
            text += &format!(
                "\nSelected minus controls; p from the rank of the selected set among as many draws:\n\n{:<14}{:>8}  {:>8}{:>7}  {:>10}  {:>34}  {:>6}\n",
                "dose",
                "neurons",
                "controls",
                "draws",
                "controls'",
                "selected minus controls'",
                "p"
            );
        }
        for contrast in contrasts {
            let excess = contrast.change - contrast.of_controls;
            text += &format!(
                "{:<14}{:>8}  {:>8}{:>7}  {:>+10.6}  {:>34}  {:>6}\n",
                dose_name(contrast.dose),
                contrast.size,
                contrast.kind.name(),
                contrast.draws,
                contrast.of_controls,
                with_ends(excess, contrast.interval),
                contrast.p.map_or("-".into(), |p| format!("{p:.3}")),
            );
        }
        text.push('\n');
        Ok(text)
    }
}
