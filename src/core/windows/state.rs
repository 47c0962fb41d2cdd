//! The windows of one entity: events are fed in, values are read out.
//!
//! A state reaches back from the newest event time of its entity (or from the clock, where that event lay ahead of it),
//! not from the clock: so last year's events can be filled in. What is older than a group reaches is forgotten, and an
//! event that comes so late is not counted by it.

use super::aggregation::{bounds_ms, Function};
use super::distinct::Distinct;
use super::histogram::Histogram;
use super::latest::Latest;
use super::layout::{Group, Kind, Layout, Reach, Reading};
use super::moments::{self, Moments, Needs, Place};
use super::percentile::{quantile, Bins};
use super::seen::{Seen, Sighting};
use super::timeline::Timeline;
use super::vector_mean::{mean, VectorSum};
use crate::codec::{decode_plain, encode_plain};
use crate::feature_type::FeatureType;
use crate::stream_id::StreamId;
use crate::value::{write_field_as_json, JsonKind, Value};
use std::borrow::Cow;
use std::sync::Arc;

/// The format of the encoded form.
const FORMAT: u8 = 1;
/// Words before the first group: newest event time; how far the anchor lies behind it, and the generation.
const HEADER_WORDS: usize = 2;
/// No event yet.
const NO_EVENT: i64 = i64::MIN;
/// Event times beyond this are no times.
const TIME_MS_MAX: i64 = 1 << 55;

/// The state of one entity.
#[derive(Debug, Clone)]
pub struct WindowState {
    layout: Arc<Layout>,
    /// The header, then the groups of moments.
    words: Box<[u64]>,
    rest: Option<Box<Rest>>,
}

/// A state as it is saved.
#[derive(bincode::Decode)]
struct Saved {
    _format: u8,
    layout: Vec<u8>,
    words: Box<[u64]>,
    rest: Option<Box<Rest>>,
}

/// What only some states have.
#[derive(Debug, Clone, Default, PartialEq, bincode::Encode, bincode::Decode)]
struct Rest {
    /// The layout's groups after the moments; all of them or none.
    groups: Vec<Contents>,
    seen: Seen,
}

/// What a group holds that is no moments.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
enum Contents {
    First(Timeline<Earliest>),
    Latest(Latest),
    Distinct(Distinct),
    Percentile(Timeline<Bins>),
    Histogram(Histogram),
    VectorMean(Timeline<VectorSum>),
}

/// The earliest value of a hop, with its event time.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
struct Earliest {
    time_ms: i64,
    value: Box<[u8]>,
}

/// An event.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// When it happened, unix milliseconds.
    pub time_ms: i64,
    /// When it came.
    pub arrived_ms: i64,
    /// The stored forms of its inputs, in the layout's order; `None`: it does not carry that one.
    pub inputs: &'a [Option<&'a [u8]>],
}

/// What became of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fed {
    /// It is older than the newest event that came before it.
    pub is_late: bool,
    /// It came too late for at least one window.
    pub is_too_late: bool,
}

/// Most bytes of a state's fixed parts.
pub(super) fn fixed_bytes(layout: &Layout) -> usize {
    let rest = layout.groups.len() - layout.moments;
    size_of::<WindowState>()
        + 8 * (HEADER_WORDS + layout.moments)
        + if rest > 0 { size_of::<Rest>() + rest * size_of::<Contents>() } else { 0 }
}

/// At which time a window is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// The server's clock, unix milliseconds.
    Clock(i64),
    /// A time that the reader named: a window that the state no longer holds whole is refused.
    Named(i64),
}

impl ReadAt {
    /// The time, unix milliseconds.
    pub fn ms(self) -> i64 {
        match self {
            ReadAt::Clock(ms) | ReadAt::Named(ms) => ms,
        }
    }
}

/// The state does not reach back to the time that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld;

fn number(bytes: &[u8]) -> Option<f64> {
    lexical_core::parse(bytes).ok()
}

fn finite(x: f64) -> f64 {
    if x.is_nan() {
        f64::MAX
    } else {
        x.clamp(f64::MIN, f64::MAX)
    }
}

/// Reads a stored form. Unlike a row's field it was never written by hand: a VECTOR is its bytes, whatever they spell.
fn from_stored(ty: FeatureType, bytes: &[u8]) -> Option<Value<'_>> {
    match ty {
        FeatureType::Vector(n) => {
            let numbers: Vec<f32> = components(bytes).collect();
            (bytes.len() == 4 * n as usize && numbers.iter().all(|x| x.is_finite())).then_some(Value::Vector(numbers))
        }
        ty => Value::from_field(ty, bytes),
    }
}

/// Is this how a value of the type is stored?
pub fn is_stored_form(ty: FeatureType, bytes: &[u8]) -> bool {
    from_stored(ty, bytes).is_some_and(|value| value.to_field() == bytes)
}

fn components(vector: &[u8]) -> impl Iterator<Item = f32> + '_ {
    vector.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

impl Contents {
    fn empty(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::Moments { .. } => return None,
            Kind::First(_) => Contents::First(Timeline::default()),
            Kind::Latest(..) => Contents::Latest(Latest::default()),
            Kind::Distinct(_) => Contents::Distinct(Distinct::default()),
            Kind::Percentile(_) => Contents::Percentile(Timeline::default()),
            Kind::Histogram(_) => Contents::Histogram(Histogram::default()),
            Kind::VectorMean(..) => Contents::VectorMean(Timeline::default()),
        })
    }

    fn divide_hops(&mut self, factor: i64) {
        match self {
            Contents::First(hops) => hops.divide_hops(factor),
            Contents::Latest(_) => {}
            Contents::Distinct(distinct) => distinct.divide_hops(factor),
            Contents::Percentile(hops) => hops.divide_hops(factor),
            Contents::Histogram(histogram) => histogram.divide_hops(factor),
            Contents::VectorMean(hops) => hops.divide_hops(factor),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Contents::First(hops) => hops.heap_bytes() + hops.cells().map(|c| c.value.len()).sum::<usize>(),
            Contents::Latest(latest) => latest.heap_bytes(),
            Contents::Distinct(distinct) => distinct.heap_bytes(),
            Contents::Percentile(hops) => hops.heap_bytes() + hops.cells().map(Bins::heap_bytes).sum::<usize>(),
            Contents::Histogram(histogram) => histogram.heap_bytes(),
            Contents::VectorMean(hops) => hops.heap_bytes() + hops.cells().map(VectorSum::heap_bytes).sum::<usize>(),
        }
    }

    /// Does it hold what such a group holds, as this code writes it?
    fn is_sound(&self, group: &Group, layout: &Layout, newest_ms: i64) -> bool {
        let newest_hop = newest_ms.div_euclid(group.hop_ms);
        let is_value =
            |input: u32, bytes: &[u8]| layout.inputs.get(input as usize).is_some_and(|i| is_stored_form(i.ty, bytes));
        match (self, group.kind) {
            (Contents::First(hops), Kind::First(input)) => {
                hops.is_sound(newest_hop, |cell| is_value(input, &cell.value))
            }
            (Contents::Latest(latest), Kind::Latest(input, k)) => {
                latest.is_sound(k as usize, newest_ms, |v| is_value(input, v))
            }
            (Contents::Distinct(distinct), Kind::Distinct(_)) => distinct.is_sound(newest_hop),
            (Contents::Percentile(hops), Kind::Percentile(_)) => hops.is_sound(newest_hop, Bins::is_sound),
            (Contents::Histogram(histogram), Kind::Histogram(input)) => {
                histogram.is_sound(newest_hop, |v| is_value(input, v))
            }
            (Contents::VectorMean(hops), Kind::VectorMean(input, _)) => {
                let dimensions = layout.dimensions(input) as usize;
                hops.is_sound(newest_hop, |cell| cell.is_sound(dimensions))
            }
            _ => false,
        }
    }
}

impl Default for WindowState {
    /// A state of no windows at all.
    fn default() -> Self {
        WindowState::new(Layout::empty(), 0)
    }
}

impl WindowState {
    /// A state without events, of a generation of the version's windows.
    pub fn new(layout: Arc<Layout>, generation: u32) -> Self {
        let mut words = Vec::with_capacity(HEADER_WORDS + layout.moments);
        words.extend([NO_EVENT as u64, u64::from(generation)]);
        words.resize(HEADER_WORDS + layout.moments, moments::EMPTY);
        WindowState { layout, words: words.into_boxed_slice(), rest: None }
    }

    /// What it is made of.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The generation of the version's windows to which it belongs.
    pub fn generation(&self) -> u32 {
        self.words[1] as u32
    }

    /// Makes it one of another generation.
    pub fn set_generation(&mut self, generation: u32) {
        self.words[1] = self.words[1] & !u64::from(u32::MAX) | u64::from(generation);
    }

    /// The newest event time, unix milliseconds.
    pub fn newest_ms(&self) -> Option<i64> {
        Some(self.words[0] as i64).filter(|ms| *ms != NO_EVENT)
    }

    fn reach(&self) -> Option<Reach> {
        let newest_ms = self.newest_ms()?;
        Some(Reach { anchor_ms: newest_ms - (self.words[1] >> 32) as i64, newest_ms })
    }

    fn advance(&mut self, event: &Event<'_>) -> Reach {
        let anchor_ms = event.time_ms.min(event.arrived_ms);
        let reach = match self.reach() {
            None => Reach { anchor_ms, newest_ms: event.time_ms },
            Some(before) => {
                Reach { anchor_ms: before.anchor_ms.max(anchor_ms), newest_ms: before.newest_ms.max(event.time_ms) }
            }
        };
        let lag = u32::try_from(reach.newest_ms - reach.anchor_ms).unwrap_or(u32::MAX);
        self.words[0] = reach.newest_ms as u64;
        self.words[1] = u64::from(lag) << 32 | u64::from(self.generation());
        Reach { anchor_ms: reach.newest_ms - i64::from(lag), ..reach }
    }

    /// Takes in an event.
    pub fn feed(&mut self, event: &Event<'_>) -> Fed {
        let mut fed = Fed::default();
        if event.time_ms.saturating_abs() > TIME_MS_MAX || event.arrived_ms.saturating_abs() > TIME_MS_MAX {
            fed.is_too_late = true;
            return fed;
        }
        fed.is_late = self.newest_ms().is_some_and(|newest| event.time_ms < newest);
        let reach = self.advance(event);
        let layout = Arc::clone(&self.layout);
        let mut start = HEADER_WORDS;
        // Several groups mostly have one input.
        let mut last_number = None;
        for group in &layout.groups[..layout.moments] {
            let Kind::Moments { input, columns, half_life_ms } = group.kind else { continue };
            let Some(place) = Place::at(&self.words, start, columns) else { break };
            let x = match input {
                None => layout.carries_an_event(event.inputs).then_some(0.0),
                Some(i) => event.inputs.get(i as usize).copied().flatten().and_then(|bytes| {
                    let needs_number = columns.count() > 0;
                    match last_number {
                        _ if !needs_number => Some(0.0),
                        Some((known, x)) if known == i => x,
                        _ => {
                            let x = number(bytes);
                            last_number = Some((i, x));
                            x
                        }
                    }
                }),
            };
            if let Some(number) = x {
                let (hop, first_hop) = (event.time_ms.div_euclid(group.hop_ms), group.first_hop(reach));
                if hop < first_hop || hop.abs() >= moments::HOP_MAX / 2 {
                    fed.is_too_late = true;
                } else {
                    let decay = if half_life_ms > 0 {
                        let left_ms = (hop + 1) * group.hop_ms - event.time_ms;
                        libm::exp2(-(left_ms as f64) / half_life_ms as f64)
                    } else {
                        1.0
                    };
                    let mut words = std::mem::take(&mut self.words).into_vec();
                    moments::add(&mut words, place, &moments::Entry { hop, first_hop, number, decay });
                    self.words = words.into_boxed_slice();
                }
            }
            start = Place::at(&self.words, start, columns).map_or(start, |place| place.end());
        }
        if layout.groups.len() > layout.moments {
            self.feed_rest(&layout, event, reach, &mut fed);
        }
        fed
    }

    fn feed_rest(&mut self, layout: &Layout, event: &Event<'_>, reach: Reach, fed: &mut Fed) {
        let rest = self.rest.get_or_insert_default();
        if rest.groups.is_empty() {
            rest.groups.reserve_exact(layout.groups.len() - layout.moments);
            rest.groups.extend(layout.groups[layout.moments..].iter().filter_map(|g| Contents::empty(g.kind)));
        }
        let input = |i: u32| event.inputs.get(i as usize).copied().flatten();
        for (group, contents) in layout.groups[layout.moments..].iter().zip(&mut rest.groups) {
            let (hop, first_hop) = (event.time_ms.div_euclid(group.hop_ms), group.first_hop(reach));
            let carried = match group.kind {
                Kind::VectorMean(i, Some(weight)) => input(weight).and(input(i)),
                Kind::First(i)
                | Kind::Latest(i, _)
                | Kind::Distinct(i)
                | Kind::Percentile(i)
                | Kind::Histogram(i)
                | Kind::VectorMean(i, None) => input(i),
                Kind::Moments { .. } => None,
            };
            let Some(value) = carried else { continue };
            if hop < first_hop {
                fed.is_too_late = true;
                continue;
            }
            match (contents, group.kind) {
                (Contents::First(hops), _) => {
                    hops.forget_before(first_hop, drop);
                    let cell = hops.cell(hop, || Earliest { time_ms: i64::MAX, value: Box::default() });
                    if event.time_ms < cell.time_ms {
                        *cell = Earliest { time_ms: event.time_ms, value: value.into() };
                    }
                }
                (Contents::Latest(latest), Kind::Latest(_, k)) => {
                    latest.forget_before(first_hop.saturating_mul(group.hop_ms));
                    latest.add(event.time_ms, value, k as usize, event.arrived_ms);
                }
                (Contents::Distinct(distinct), _) => {
                    distinct.add(value, hop, first_hop);
                }
                (Contents::Percentile(hops), _) => {
                    hops.forget_before(first_hop, drop);
                    if let Some(x) = number(value) {
                        hops.cell(hop, Bins::default).add(x);
                    }
                }
                (Contents::Histogram(histogram), _) => {
                    histogram.forget_before(first_hop);
                    histogram.add(hop, value);
                }
                (Contents::VectorMean(hops), Kind::VectorMean(i, weight)) => {
                    hops.forget_before(first_hop, drop);
                    let weight = weight.and_then(input).map_or(Some(1.0), number).unwrap_or(0.0);
                    let dimensions = layout.dimensions(i) as usize;
                    hops.cell(hop, || VectorSum::new(dimensions)).add(components(value), weight);
                }
                _ => {}
            }
        }
    }

    /// The entry of an event that was seen within `remember_ms`. `None`: it was not seen.
    pub fn find(&self, id: &[u8], arrived_ms: i64, remember_ms: i64) -> Option<Option<StreamId>> {
        self.rest.as_ref()?.seen.find(id, arrived_ms, remember_ms)
    }

    /// Remembers an event. Answers how many were forgotten before their time.
    pub fn remember(&mut self, sighting: &Sighting<'_>) -> u64 {
        self.rest.get_or_insert_default().seen.remember(sighting)
    }

    /// Reads a window. `None`: it holds no events, and the function has no value over none.
    pub fn read(&self, reading: &Reading, at: ReadAt) -> Result<Option<Value<'static>>, TooOld> {
        let none = || Ok(reading.function.over_no_events());
        let Some(reach) = self.reach() else { return none() };
        let Some(group) = self.layout.groups.get(reading.group) else { return none() };
        let t_ms = at.ms();
        let (from_ms, to_ms) = bounds_ms(reading.length_ms, reading.hop_ms, t_ms);
        let (from, to) = (from_ms.div_euclid(group.hop_ms), to_ms.div_euclid(group.hop_ms));
        let must_be_whole = matches!(at, ReadAt::Named(_));
        // In a state of an older definition, a window that was added may be longer than the group that answers it: it
        // is served as far as it goes.
        let hops_wanted = (reading.length_ms + reading.hop_ms) / group.hop_ms - 1;
        let reaching = Group { hops: group.hops.max(hops_wanted), ..*group };
        if must_be_whole && from < reaching.first_hop(reach) {
            return Err(TooOld);
        }
        if let Kind::Moments { half_life_ms, .. } = group.kind {
            let Some(place) = self.moments_at(reading.group) else { return none() };
            let needs = match reading.function {
                Function::Sum | Function::Mean => Needs::Sum,
                Function::VarPop | Function::VarSamp | Function::StddevPop | Function::StddevSamp => Needs::Squares,
                Function::Min => Needs::Min,
                Function::Max => Needs::Max,
                Function::DecayedSum(_) => Needs::Decayed,
                _ => Needs::Count,
            };
            let weight_of = |hop: i64| {
                let past_ms = t_ms - (hop + 1) * group.hop_ms;
                libm::exp2(-(past_ms as f64) / half_life_ms as f64)
            };
            let moments = moments::merge(&self.words, place, (from, to), needs, weight_of);
            return Ok(value_of_moments(reading.function, &moments));
        }
        let contents = self.rest.as_ref().and_then(|r| r.groups.get(reading.group - self.layout.moments));
        let Some(contents) = contents else { return none() };
        let input = |i: u32| self.layout.inputs[i as usize].ty;
        let owned = |ty: FeatureType, bytes: &[u8]| from_stored(ty, bytes).map(Value::into_owned);
        Ok(match (contents, group.kind) {
            (Contents::First(hops), Kind::First(i)) => {
                hops.range(from, to).next().and_then(|cell| owned(input(i), &cell.value))
            }
            (Contents::Latest(latest), Kind::Latest(i, _)) => {
                let k = if let Function::LastK(k) = reading.function { k as usize } else { 1 };
                let (values, is_whole) = latest.read(k, from_ms, to_ms);
                if must_be_whole && !is_whole {
                    return Err(TooOld);
                }
                match reading.function {
                    Function::LastK(_) => Some(list(values.iter(), |value, out| {
                        write_field_as_json(JsonKind::from(input(i)), value, out);
                    })),
                    _ => values.first().and_then(|value| owned(input(i), value)),
                }
            }
            (Contents::Distinct(distinct), _) => {
                if must_be_whole && to_ms <= reach.anchor_ms {
                    return Err(TooOld);
                }
                Some(Value::Int(distinct.count(from)))
            }
            (Contents::Percentile(hops), _) => {
                let q = if let Function::ApproxPercentile(q) = reading.function { q } else { 0.5 };
                quantile(hops.range(from, to), q).map(Value::Float)
            }
            (Contents::Histogram(histogram), Kind::Histogram(i)) => {
                let k = if let Function::TopK(k) = reading.function { k as usize } else { usize::MAX };
                let counts = histogram.read(k, from, to);
                Some(list(counts.iter(), |(value, count), out| {
                    out.push(b'[');
                    write_field_as_json(JsonKind::from(input(i)), value, out);
                    out.push(b',');
                    out.extend_from_slice(count.to_string().as_bytes());
                    out.push(b']');
                }))
            }
            (Contents::VectorMean(hops), Kind::VectorMean(i, _)) => {
                mean(hops.range(from, to), self.layout.dimensions(i) as usize).map(Value::Vector)
            }
            _ => None,
        })
    }

    fn moments_at(&self, group: usize) -> Option<Place> {
        let mut start = HEADER_WORDS;
        for (i, g) in self.layout.groups[..self.layout.moments].iter().enumerate() {
            let Kind::Moments { columns, .. } = g.kind else { return None };
            let place = Place::at(&self.words, start, columns)?;
            if i == group {
                return Some(place);
            }
            start = place.end();
        }
        None
    }

    /// Goes over to another layout. Groups that both have keep their contents; new ones begin empty.
    pub fn change_layout(&mut self, layout: Arc<Layout>) {
        let old = Arc::clone(&self.layout);
        let mut words = self.words[..HEADER_WORDS].to_vec();
        for group in &layout.groups[..layout.moments] {
            let before = layout.predecessor(group, &old).and_then(|i| Some((self.moments_at(i)?, old.groups[i])));
            match (before, group.kind) {
                (Some((place, before)), Kind::Moments { columns, .. }) => {
                    moments::append_as(&self.words, place, columns, before.hop_ms / group.hop_ms, &mut words);
                }
                _ => words.push(moments::EMPTY),
            }
        }
        if let Some(rest) = &mut self.rest {
            let groups = layout.groups[layout.moments..].iter().filter_map(|group| {
                let before = layout.predecessor(group, &old).and_then(|i| {
                    let mut contents = rest.groups.get(i.checked_sub(old.moments)?)?.clone();
                    contents.divide_hops(old.groups[i].hop_ms / group.hop_ms);
                    if let (Contents::Latest(latest), Kind::Latest(_, k)) = (&mut contents, group.kind) {
                        latest.limit(k as usize);
                    }
                    Some(contents)
                });
                before.or_else(|| Contents::empty(group.kind))
            });
            rest.groups = groups.collect();
        }
        self.words = words.into_boxed_slice();
        self.layout = layout;
    }

    /// Bytes that it takes, apart from the layout that many share.
    pub fn bytes(&self) -> usize {
        let rest = self.rest.as_ref().map_or(0, |rest| {
            size_of::<Rest>()
                + rest.groups.capacity() * size_of::<Contents>()
                + rest.groups.iter().map(Contents::heap_bytes).sum::<usize>()
                + rest.seen.heap_bytes()
        });
        size_of::<Self>() + size_of_val(&*self.words) + rest
    }

    /// How much work freeing it is: about how many blocks it holds.
    pub fn blocks(&self) -> usize {
        2 + self.rest.as_ref().map_or(0, |rest| {
            let cells = |contents: &Contents| match contents {
                Contents::First(hops) => hops.cells().count(),
                Contents::Percentile(hops) => hops.cells().count(),
                Contents::VectorMean(hops) => hops.cells().count(),
                _ => 64,
            };
            rest.groups.iter().map(cells).sum::<usize>() + rest.seen.len() + 2
        })
    }

    /// Gives the words, the largest block of most states, to `move_block`, which may move them to a better place.
    pub fn with_words(&mut self, move_block: impl FnOnce(Box<[u64]>) -> Box<[u64]>) {
        self.words = move_block(std::mem::take(&mut self.words));
    }

    /// The encoded form.
    pub fn encode(&self) -> Vec<u8> {
        encode_plain(&(FORMAT, self.layout.encoded(), &self.words, &self.rest))
    }

    /// Reads the encoded form. The error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.first() {
            Some(&FORMAT) => {}
            Some(other) => return Err(format!("it has format {other}, this version reads {FORMAT}")),
            None => return Err("it is empty".to_owned()),
        }
        let saved: Saved = decode_plain(bytes).map_err(|e| e.to_string())?;
        let layout = Layout::decode(&saved.layout).ok_or("its layout is damaged")?;
        let state = WindowState { layout, words: saved.words, rest: saved.rest };
        match state.is_sound() {
            true => Ok(state),
            false => Err("its contents are damaged".to_owned()),
        }
    }

    fn is_sound(&self) -> bool {
        if self.words.len() < HEADER_WORDS + self.layout.moments {
            return false;
        }
        let newest = self.words[0] as i64;
        if newest != NO_EVENT && newest.saturating_abs() > TIME_MS_MAX {
            return false;
        }
        let mut start = HEADER_WORDS;
        for group in &self.layout.groups[..self.layout.moments] {
            let Kind::Moments { columns, .. } = group.kind else { return false };
            match moments::sound_end(&self.words, start, columns, newest.div_euclid(group.hop_ms)) {
                Some(end) => start = end,
                None => return false,
            }
        }
        let groups = &self.layout.groups[self.layout.moments..];
        start == self.words.len()
            && self.rest.as_ref().is_none_or(|rest| {
                rest.seen.is_sound()
                    && (rest.groups.is_empty() || rest.groups.len() == groups.len())
                    && rest
                        .groups
                        .iter()
                        .zip(groups)
                        .all(|(contents, group)| contents.is_sound(group, &self.layout, newest))
            })
    }
}

fn value_of_moments(function: Function, moments: &Moments) -> Option<Value<'static>> {
    let n = moments.count;
    let at_least = |least: u64, value: f64| (n >= least).then(|| Value::Float(finite(value)));
    match function {
        Function::Count => Some(Value::Int(i64::try_from(n).unwrap_or(i64::MAX))),
        Function::Sum => Some(Value::Float(finite(moments.sum()))),
        Function::DecayedSum(_) => Some(Value::Float(finite(moments.decayed))),
        Function::Mean => at_least(1, moments.mean()),
        Function::Min => at_least(1, moments.min),
        Function::Max => at_least(1, moments.max),
        Function::VarPop => at_least(1, moments.variance_over(n)),
        Function::VarSamp => at_least(2, moments.variance_over(n.saturating_sub(1))),
        Function::StddevPop => at_least(1, moments.variance_over(n).sqrt()),
        Function::StddevSamp => at_least(2, moments.variance_over(n.saturating_sub(1)).sqrt()),
        _ => None,
    }
}

fn list<T>(items: impl Iterator<Item = T>, write: impl Fn(T, &mut Vec<u8>)) -> Value<'static> {
    let mut json = vec![b'['];
    for (i, item) in items.enumerate() {
        if i > 0 {
            json.push(b',');
        }
        write(item, &mut json);
    }
    json.push(b']');
    // The JSON of stored forms is text; damaged bytes from elsewhere are shown as such.
    Value::List(Cow::Owned(
        String::from_utf8(json).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
    ))
}
