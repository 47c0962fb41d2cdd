//! Which state the windows of a view need together, and which part of it answers which feature.
//!
//! Windows over the same input share a group where that saves memory: 1h, 24h and 7d of one sum in hops of an hour are
//! one group of 169 cells. A group in short hops also answers a window in longer hops that are multiples of its own.

use super::aggregation::{Function, Window, HOPS_MAX, LAST_K_MAX};
use crate::definition::{Feature, FeatureView};
use crate::feature_type::FeatureType;
use bincode::{Decode, Encode};
use lazy_static::lazy_static;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Hops that a group keeps beyond its windows for events that lie ahead of the clock.
pub(super) const HOPS_AHEAD_MAX: i64 = 16_000;
/// A window of longer hops does not share shorter ones than these: within the default clock skew, an event ahead of the
/// clock could push out what it holds.
const SHARED_HOP_MS_MIN: i64 = 20;
/// Most hops in a group of distinct counts: their stamps have 15 bits.
const DISTINCT_HOPS_MAX: i64 = 16_384;
/// More than any view's layout takes: 4,096 features.
const GROUPS_MAX: usize = 8_192;
/// Longest time that one group looks back, in milliseconds: what the definition's durations allow, twice.
const LOOK_BACK_MS_MAX: i64 = 1 << 56;

/// What moments are kept beside the count, one column each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Columns {
    pub(super) sum: bool,
    /// Sum of squared deviations from the mean; needs `sum`.
    pub(super) squares: bool,
    pub(super) min: bool,
    pub(super) max: bool,
    pub(super) decayed: bool,
}

impl Columns {
    /// How many columns.
    pub(super) fn count(self) -> usize {
        usize::from(self.sum)
            + usize::from(self.squares)
            + usize::from(self.min)
            + usize::from(self.max)
            + usize::from(self.decayed)
    }

    fn with(self, other: Columns) -> Columns {
        Columns {
            sum: self.sum || other.sum,
            squares: self.squares || other.squares,
            min: self.min || other.min,
            max: self.max || other.max,
            decayed: self.decayed || other.decayed,
        }
    }
}

/// What a group keeps. Its encoding, and so the order of everything here, is part of the format of saved states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Kind {
    /// Count, sums, extremes. `input`: index among the inputs; none counts events that carry any INPUT.
    Moments {
        /// Of which input.
        input: Option<u32>,
        /// Beside the count.
        columns: Columns,
        /// Of the decayed sum, milliseconds; 0: there is none.
        half_life_ms: i64,
    },
    /// The earliest value of each hop.
    First(u32),
    /// The latest values: input, and how many.
    Latest(u32, u32),
    /// A sketch of distinct values.
    Distinct(u32),
    /// A sketch of the distribution.
    Percentile(u32),
    /// Counts by value.
    Histogram(u32),
    /// Sums of vectors, and of their weights.
    VectorMean(u32, Option<u32>),
}

impl Kind {
    /// Most hops that a group may look back.
    fn hops_max(self) -> i64 {
        match self {
            // Its values keep their own times.
            Kind::Latest(..) => LOOK_BACK_MS_MAX,
            Kind::Distinct(_) => DISTINCT_HOPS_MAX,
            _ => HOPS_MAX,
        }
    }
}

/// A part of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Group {
    /// What it keeps.
    pub kind: Kind,
    /// In hops of so many milliseconds.
    pub hop_ms: i64,
    /// It reaches back so many hops from the hop of the newest event.
    pub hops: i64,
}

/// From where a state reaches back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reach {
    /// The newest event time, or the clock at its arrival if that was earlier.
    pub(super) anchor_ms: i64,
    /// The newest event time.
    pub(super) newest_ms: i64,
}

/// An input of windows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Input {
    /// The feature's name.
    pub name: String,
    /// Its type.
    pub ty: FeatureType,
    /// A bare COUNT counts events that carry it.
    pub makes_an_event: bool,
}

/// What the state of one entity is made of. Shared by all states that were made by one definition.
#[derive(Debug, PartialEq)]
pub struct Layout {
    /// All inputs, in the schema's order.
    pub inputs: Vec<Input>,
    /// The groups, moments first.
    pub groups: Vec<Group>,
    /// How many groups are moments.
    pub(super) moments: usize,
    /// The encoded form: the layout's identity.
    encoded: Vec<u8>,
}

/// How a feature is read from a state.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The group that answers it.
    pub group: usize,
    /// The function.
    pub function: Function,
    /// The window's length, milliseconds.
    pub length_ms: i64,
    /// The window's hop, milliseconds.
    pub hop_ms: i64,
}

fn may_share(hop_ms: i64, other_ms: i64) -> bool {
    hop_ms == other_ms || hop_ms.min(other_ms) >= SHARED_HOP_MS_MIN
}

impl Group {
    /// The group that one window alone needs.
    fn of(window: &Window, input: Option<u32>, weight: Option<u32>) -> Group {
        let moments = |columns, half_life_ms| Kind::Moments { input, columns, half_life_ms };
        let (none, of) = (Columns::default(), input.unwrap_or_default());
        let sum = Columns { sum: true, ..none };
        let kind = match window.function {
            Function::Count => moments(none, 0),
            Function::Sum | Function::Mean => moments(sum, 0),
            Function::DecayedSum(half_life_ms) => moments(Columns { decayed: true, ..none }, half_life_ms),
            Function::Min => moments(Columns { min: true, ..none }, 0),
            Function::Max => moments(Columns { max: true, ..none }, 0),
            Function::VarPop | Function::VarSamp | Function::StddevPop | Function::StddevSamp => {
                moments(Columns { squares: true, ..sum }, 0)
            }
            Function::First => Kind::First(of),
            Function::Last => Kind::Latest(of, 1),
            Function::LastK(k) => Kind::Latest(of, k),
            Function::ApproxCountDistinct => Kind::Distinct(of),
            Function::ApproxPercentile(_) => Kind::Percentile(of),
            Function::TopK(_) | Function::Histogram => Kind::Histogram(of),
            Function::MeanVector => Kind::VectorMean(of, weight),
        };
        Group { kind, hop_ms: window.hop_ms, hops: window.hops() }
    }

    /// Memory at its bound, in words of 8 bytes, to compare with others of its kind.
    fn cost(&self) -> i64 {
        match self.kind {
            Kind::Moments { columns, .. } => (self.hops + 1) * (1 + columns.count() as i64),
            // They do not grow with the number of hops.
            Kind::Latest(..) | Kind::Distinct(_) => 1,
            _ => self.hops + 1,
        }
    }

    /// The kind of both, if they keep the same of the same input.
    fn common_kind(&self, other: &Group) -> Option<Kind> {
        match (self.kind, other.kind) {
            (
                Kind::Moments { input, columns, half_life_ms },
                Kind::Moments { input: input2, columns: columns2, half_life_ms: half_life2_ms },
            ) => (input == input2 && half_life_ms == half_life2_ms).then(|| Kind::Moments {
                input,
                columns: columns.with(columns2),
                half_life_ms,
            }),
            (Kind::Latest(input, k), Kind::Latest(input2, k2)) => {
                (input == input2).then_some(Kind::Latest(input, k.max(k2)))
            }
            (kind, kind2) => (kind == kind2).then_some(kind),
        }
    }

    /// One group that answers the windows of both, if there is one.
    fn shared_with(&self, other: &Group) -> Option<Group> {
        let kind = self.common_kind(other)?;
        let hop_ms = self.hop_ms.min(other.hop_ms);
        // A window that is read in the middle of its own long hop begins that much earlier.
        let hops = self.reach_ms().max(other.reach_ms()) / hop_ms - 1;
        (may_share(self.hop_ms, other.hop_ms)
            && self.hop_ms % hop_ms == 0
            && other.hop_ms % hop_ms == 0
            && hops <= kind.hops_max())
        .then_some(Group { kind, hop_ms, hops })
    }

    /// How long a time its hops cover, milliseconds.
    fn reach_ms(&self) -> i64 {
        (self.hops + 1) * self.hop_ms
    }

    /// Does it answer everything that `wanted` would, apart from how far it reaches back?
    fn answers(&self, wanted: &Group) -> bool {
        self.common_kind(wanted) == Some(self.kind)
            && wanted.hop_ms % self.hop_ms == 0
            && may_share(self.hop_ms, wanted.hop_ms)
    }

    /// The first hop that it keeps when it reaches back from `anchor_ms`.
    pub(super) fn first_hop(&self, reach: Reach) -> i64 {
        let anchor = reach.anchor_ms.div_euclid(self.hop_ms);
        match self.kind {
            // It holds so many values, whatever their times.
            Kind::Latest(..) => anchor - self.hops,
            // Events ahead of the clock must not make the state grow without bound where hops are short.
            _ => anchor.max(reach.newest_ms.div_euclid(self.hop_ms) - HOPS_AHEAD_MAX) - self.hops,
        }
    }

    /// The most bytes that a state takes for it, fixed parts included, but without the bytes of STRING and LIST values.
    /// `skew_ms`: how far events may lie ahead of the clock.
    pub fn bytes_max(&self, layout: &Layout, skew_ms: i64) -> u64 {
        let ahead = (skew_ms / self.hop_ms + 1).min(HOPS_AHEAD_MAX);
        let cells = (self.hops + 1 + ahead).unsigned_abs();
        // Numbers are kept as text of up to 24 bytes, vectors as they are.
        let value = |input: u32| match layout.inputs.get(input as usize).map(|i| i.ty) {
            Some(FeatureType::Vector(n)) => 4 * u64::from(n),
            Some(FeatureType::String | FeatureType::List) => 0,
            _ => 24,
        };
        // Blocks grow by an eighth, some by a quarter, at a time.
        let own = match self.kind {
            // The count, the columns, and what rounding took from the sum.
            Kind::Moments { columns, .. } => cells * 8 * (1 + columns.count() as u64 + u64::from(columns.sum)),
            Kind::First(input) => cells * (32 + value(input)) * 9 / 8,
            Kind::Latest(input, k) => {
                let (k, ahead) = (u64::from(k), super::latest::AHEAD_MIN as u64);
                (k + k.max(ahead)) * (24 + value(input)) * 2
            }
            Kind::Distinct(_) => super::distinct::BYTES_MAX,
            Kind::Percentile(_) => cells * (32 + 8 * super::percentile::BINS_MAX as u64) * 5 / 4,
            Kind::Histogram(input) => {
                let values = super::histogram::VALUES_MAX as u64;
                cells * (32 + 8 * values) * 5 / 4 + values * (24 + value(input)) * 2
            }
            Kind::VectorMean(input, _) => cells * (40 + 8 * u64::from(layout.dimensions(input))) * 9 / 8,
        };
        own + super::state::fixed_bytes(layout) as u64
    }
}

impl Layout {
    /// The layout of a view's windows; `None`: the view has none and remembers no events.
    pub fn of(view: &FeatureView) -> Option<Arc<Layout>> {
        let windows: Vec<&Window> = view.features().iter().filter_map(|f| f.window.as_ref()).collect();
        if windows.is_empty() && view.dedup_ms.is_none() {
            return None;
        }
        let counts_bare = windows.iter().any(|w| w.input.is_none());
        let is_input = |feature: &Feature| {
            let named =
                |w: &&Window| w.input.as_ref() == Some(&feature.name) || w.weight.as_ref() == Some(&feature.name);
            (counts_bare && feature.input) || windows.iter().any(named)
        };
        let inputs: Vec<Input> = view
            .features()
            .iter()
            .filter(|f| is_input(f))
            .map(|f| Input { name: f.name.clone(), ty: f.ty, makes_an_event: counts_bare && f.input })
            .collect();
        let place = |name: &String| inputs.iter().position(|i| i.name == *name).map(|i| i as u32);
        let counted = |w: &Window| w.input.as_ref().map_or_else(|| only_event_input(&inputs), place);
        let mut wanted: Vec<Group> =
            windows.iter().map(|w| Group::of(w, counted(w), w.weight.as_ref().and_then(place))).collect();
        // Short hops first, and the longest of them: what comes later may then be answered along with it.
        wanted.sort_by_key(|g| (g.hop_ms, -g.hops));
        let mut groups: Vec<Group> = Vec::new();
        for group in wanted {
            let sharing = |(i, other): (usize, &Group)| {
                let shared = other.shared_with(&group)?;
                let saved = other.cost() + group.cost() - shared.cost();
                (saved >= 0).then_some((saved, i, shared))
            };
            match groups.iter().enumerate().filter_map(sharing).max_by_key(|(saved, ..)| *saved) {
                Some((_, i, shared)) => groups[i] = shared,
                None => groups.push(group),
            }
        }
        groups.sort_by_key(|g| !matches!(g.kind, Kind::Moments { .. }));
        let encoded = crate::codec::encode_plain(&(&inputs, &groups));
        Some(intern(Layout::new(inputs, groups, encoded)))
    }

    /// The layout of no windows.
    pub(super) fn empty() -> Arc<Layout> {
        let encoded = crate::codec::encode_plain(&(Vec::<Input>::new(), Vec::<Group>::new()));
        intern(Layout::new(Vec::new(), Vec::new(), encoded))
    }

    fn new(inputs: Vec<Input>, groups: Vec<Group>, encoded: Vec<u8>) -> Self {
        let moments = groups.iter().filter(|g| matches!(g.kind, Kind::Moments { .. })).count();
        Layout { inputs, groups, moments, encoded }
    }

    /// The most bytes that a state takes, as [`Group::bytes_max`] says, events ahead of the clock left out.
    pub fn bytes_max(&self) -> u64 {
        self.groups.iter().map(|group| group.bytes_max(self, 0)).fold(0, u64::saturating_add)
    }

    /// Reads an encoded layout. `None`: damaged.
    pub fn decode(encoded: &[u8]) -> Option<Arc<Layout>> {
        if let Some(known) = known_layout(encoded) {
            return Some(known);
        }
        let (inputs, groups): (Vec<Input>, Vec<Group>) = crate::codec::decode_plain(encoded).ok()?;
        let layout = Layout::new(inputs, groups, encoded.to_vec());
        layout.is_sound().then(|| intern(layout))
    }

    /// The encoded form.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    fn is_sound(&self) -> bool {
        let input = |i: u32| (i as usize) < self.inputs.len();
        let is_vector = |i: u32| input(i) && self.dimensions(i) > 0;
        let is_ordered = self.groups[self.moments..].iter().all(|g| !matches!(g.kind, Kind::Moments { .. }));
        self.groups.len() <= GROUPS_MAX
            && self.inputs.len() <= GROUPS_MAX
            && self.inputs.iter().all(|i| i.ty != FeatureType::Vector(0))
            && is_ordered
            && self.groups.iter().all(|g| {
                let kind_is_sound = match g.kind {
                    Kind::Moments { input: i, columns, half_life_ms } => {
                        i.is_none_or(input)
                            && (!columns.squares || columns.sum)
                            && columns.decayed == (half_life_ms > 0)
                            && half_life_ms < LOOK_BACK_MS_MAX
                    }
                    Kind::VectorMean(i, weight) => is_vector(i) && weight.is_none_or(input),
                    Kind::Latest(i, k) => input(i) && (1..=LAST_K_MAX).contains(&k),
                    Kind::First(i) | Kind::Distinct(i) | Kind::Percentile(i) | Kind::Histogram(i) => input(i),
                };
                kind_is_sound
                    && g.hop_ms >= 1
                    && (1..=g.kind.hops_max()).contains(&g.hops)
                    && g.hops.checked_mul(g.hop_ms).is_some_and(|ms| ms <= LOOK_BACK_MS_MAX)
            })
    }

    /// Does an event with these inputs carry any INPUT, for a bare COUNT?
    pub(super) fn carries_an_event(&self, inputs: &[Option<&[u8]>]) -> bool {
        self.inputs.iter().zip(inputs).any(|(input, value)| input.makes_an_event && value.is_some())
    }

    /// The dimension of a VECTOR input; 0 for others.
    pub(super) fn dimensions(&self, input: u32) -> u32 {
        match self.inputs.get(input as usize).map(|i| i.ty) {
            Some(FeatureType::Vector(n)) => n,
            _ => 0,
        }
    }

    /// The place of an input.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|i| i.name == name)
    }

    /// How a window is read from a state of this layout; `None`: the layout knows nothing of it.
    pub fn reading(&self, window: &Window) -> Option<Reading> {
        let place = |name: &String| self.input(name).map(|i| i as u32);
        let input = match &window.input {
            Some(name) => Some(place(name)?),
            None => only_event_input(&self.inputs),
        };
        let weight = match &window.weight {
            Some(name) => Some(place(name)?),
            None => None,
        };
        let wanted = Group::of(window, input, weight);
        let reach_ms = |g: &Group| g.reach_ms().min(wanted.reach_ms());
        let answering = self.groups.iter().enumerate().filter(|(_, g)| g.answers(&wanted));
        // Of those that reach back far enough the first; in a state of an older definition, the farthest.
        let (group, _) = answering.max_by_key(|(i, g)| (reach_ms(g), std::cmp::Reverse(*i)))?;
        Some(Reading { group, function: window.function, length_ms: window.length_ms, hop_ms: window.hop_ms })
    }

    /// The group of another layout whose contents a group of this one can take over.
    pub(super) fn predecessor(&self, group: &Group, old: &Layout) -> Option<usize> {
        let same_input = |new: u32, before: u32| {
            self.inputs[new as usize].name == old.inputs[before as usize].name
                && self.inputs[new as usize].ty == old.inputs[before as usize].ty
        };
        // A bare COUNT of a view that had one INPUT was kept as a count of that.
        let was_counted_bare = |before: u32| only_event_input(&old.inputs) == Some(before);
        let same_inputs = |new: Option<u32>, before: Option<u32>| match (new, before) {
            (None, None) => true,
            (None, Some(before)) => was_counted_bare(before),
            (Some(new), Some(before)) => same_input(new, before),
            _ => false,
        };
        let continues = |before: &Group| {
            before.hop_ms % group.hop_ms == 0
                && match (group.kind, before.kind) {
                    (
                        Kind::Moments { input, half_life_ms, .. },
                        Kind::Moments { input: input2, half_life_ms: half_life2_ms, .. },
                    ) => same_inputs(input, input2) && half_life_ms == half_life2_ms,
                    (Kind::First(a), Kind::First(b))
                    | (Kind::Latest(a, _), Kind::Latest(b, _))
                    | (Kind::Distinct(a), Kind::Distinct(b))
                    | (Kind::Percentile(a), Kind::Percentile(b))
                    | (Kind::Histogram(a), Kind::Histogram(b)) => same_input(a, b),
                    (Kind::VectorMean(a, weight), Kind::VectorMean(b, weight2)) => {
                        same_input(a, b) && weight.is_some() == weight2.is_some() && same_inputs(weight, weight2)
                    }
                    _ => false,
                }
        };
        let continued = old.groups.iter().enumerate().filter(|(_, g)| continues(g));
        continued.max_by_key(|(_, g)| g.reach_ms()).map(|(i, _)| i)
    }
}

/// The input that alone makes an event, if it is one: then a bare COUNT is a count of it, and shares its cells.
fn only_event_input(inputs: &[Input]) -> Option<u32> {
    let mut makers = inputs.iter().enumerate().filter(|(_, input)| input.makes_an_event);
    let first = makers.next()?;
    makers.next().is_none().then_some(first.0 as u32)
}

lazy_static! {
    /// Every layout in use, by its encoded form: a million states share one.
    static ref LAYOUTS: Mutex<HashMap<Vec<u8>, Weak<Layout>>> = Mutex::new(HashMap::new());
}

fn known_layout(encoded: &[u8]) -> Option<Arc<Layout>> {
    LAYOUTS.lock().ok()?.get(encoded)?.upgrade()
}

fn intern(layout: Layout) -> Arc<Layout> {
    let Ok(mut layouts) = LAYOUTS.lock() else { return Arc::new(layout) };
    if let Some(known) = layouts.get(&layout.encoded).and_then(Weak::upgrade) {
        return known;
    }
    // Forgets layouts that no state has any more, now and then.
    if layouts.len() == layouts.capacity() {
        layouts.retain(|_, layout| layout.strong_count() > 0);
    }
    let layout = Arc::new(layout);
    layouts.insert(layout.encoded.clone(), Arc::downgrade(&layout));
    layout
}
