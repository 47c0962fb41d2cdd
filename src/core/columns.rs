//! The column cache of one view: the numbers of its rows in one place, found by entity id.
//!
//! A row of the cache is a record of 32-bit words, as many for each row: what it is, until when it may be served, which
//! numbers are the row's own, the entity's id, the numbers. Records lie in blocks, so that the table grows and shrinks
//! without copying. The index is cut into many small open-addressed tables, so that none takes long to grow.
//!
//! Memory is slow and the processor asks for many lines at once, if it is let: [`Table::find_all`] goes over a batch of
//! ids three times, once to ask for index entries, once for records, once to read them. What asks for a line of memory
//! without waiting comes from outside: `prefetch` is given addresses.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Records in a block.
const BLOCK_ROWS: usize = 512;
/// Words of a processor's cache line.
const LINE_WORDS: usize = 16;
/// Parts of the index.
const SHARDS: usize = 1_024;
/// Ids that are looked up together.
const BATCH: usize = 32;
/// How long an id may be that stands in its record, words: the shortest of these that holds the first one.
const ID_WORDS: [usize; 3] = [6, 10, 16];
/// Records that are looked at for one that was not read lately.
const SWEEP_MAX: usize = 256;

/// What an id was not found as.
pub const ABSENT: u32 = u32::MAX;

/// About what a long id takes beside its bytes.
const LONG_ID_BYTES: usize = 64;

// A record: its first word, the time, the bits of its own numbers, the id, the numbers.
const TIME_AT: usize = 1;
const OWN_AT: usize = 3;
/// Of a free record: the next free one.
const NEXT_FREE_AT: usize = 1;
const ID_LENGTH: u32 = 0xffff;
/// How often the hand may pass until it counts as not read lately.
const READ: u32 = 3 << 16;
const JUST_READ: u32 = 2 << 16;
const PASSED_ONCE: u32 = 1 << 16;
const IS_USED: u32 = 1 << 18;

/// Part of the index: an entry is a record's number plus one and the upper half of the id's hash; zero is none.
#[derive(Debug, Default, Clone)]
struct Shard {
    entries: Vec<u64>,
    used: usize,
}

const NONE: u64 = 0;

fn entry(slot: u32, tag: u32) -> u64 {
    (u64::from(slot) + 1) << 32 | u64::from(tag)
}

fn slot_of(entry: u64) -> u32 {
    ((entry >> 32) - 1) as u32
}

impl Shard {
    /// Where an entry with this tag is looked for first.
    fn home(&self, tag: u32) -> usize {
        tag as usize & self.entries.len().wrapping_sub(1)
    }

    /// Records whose ids may have this tag.
    fn candidates(&self, tag: u32) -> impl Iterator<Item = u32> + '_ {
        let mask = self.entries.len().wrapping_sub(1);
        let (home, most) = (self.home(tag), self.entries.len());
        let probes = (0..most).map(move |i| self.entries[(home + i) & mask]).take_while(|entry| *entry != NONE);
        probes.filter(move |entry| *entry as u32 == tag).map(slot_of)
    }

    /// How much more it takes with one entry more.
    fn growth_bytes(&self) -> usize {
        match (self.used + 1) * 4 > self.entries.len() * 3 {
            true => ((self.entries.len() * 2).max(4) - self.entries.len()) * 8,
            false => 0,
        }
    }

    /// Takes no more entries as it is: one stays empty, so that searches end.
    fn is_full(&self) -> bool {
        self.used + 1 >= self.entries.len()
    }

    fn insert(&mut self, slot: u32, tag: u32, may_grow: bool) {
        if may_grow && self.growth_bytes() > 0 {
            let grown = vec![NONE; (self.entries.len() * 2).max(4)];
            let old = std::mem::replace(&mut self.entries, grown);
            old.into_iter().filter(|e| *e != NONE).for_each(|e| self.place(e));
        }
        self.place(entry(slot, tag));
        self.used += 1;
    }

    fn place(&mut self, entry: u64) {
        let mask = self.entries.len() - 1;
        let mut at = self.home(entry as u32);
        while self.entries[at] != NONE {
            at = (at + 1) & mask;
        }
        self.entries[at] = entry;
    }

    fn remove(&mut self, slot: u32, tag: u32) {
        let mask = self.entries.len().wrapping_sub(1);
        let mut hole = self.home(tag);
        while self.entries[hole] != entry(slot, tag) {
            hole = (hole + 1) & mask;
        }
        // Entries that were pushed on by this one move back, so that no search stops at the hole.
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let moved = self.entries[at];
            if moved == NONE {
                break;
            }
            let home = self.home(moved as u32);
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.entries[hole] = moved;
                hole = at;
            }
        }
        self.entries[hole] = NONE;
        self.used -= 1;
    }
}

/// What an id takes that does not fit into its record.
fn long_id_bytes(id: &[u8], id_words: usize) -> usize {
    if id.len() > id_words * 4 {
        id.len() + LONG_ID_BYTES
    } else {
        0
    }
}

/// Records of a table that is no more, to be given back a few at a time.
#[derive(Debug, Default)]
pub struct Remains(Vec<Block>);

impl Remains {
    /// Frees a block. False: none is left.
    pub fn free_some(&mut self) -> bool {
        self.0.pop().is_some()
    }

    /// Takes over what is left of others.
    pub fn append(&mut self, mut others: Remains) {
        self.0.append(&mut others.0);
    }
}

/// Records, and where the first begins: on a cache line.
#[derive(Debug, Clone)]
struct Block {
    words: Vec<u32>,
    start: usize,
    /// The first free record among those that were in use, and how many there are. Each names the next.
    free: u32,
    free_count: usize,
    /// Ids that are longer than their record has room for, by record.
    long_ids: FxHashMap<u32, Box<[u8]>>,
}

impl Block {
    fn new(stride: usize) -> Self {
        let words = vec![0u32; BLOCK_ROWS * stride + LINE_WORDS];
        let beyond = (words.as_ptr() as usize / 4) % LINE_WORDS;
        let start = (LINE_WORDS - beyond) % LINE_WORDS;
        Block { words, start, free: ABSENT, free_count: 0, long_ids: FxHashMap::default() }
    }

    fn bytes(stride: usize) -> usize {
        (BLOCK_ROWS * stride + LINE_WORDS) * 4
    }
}

/// One row to be kept.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// The last millisecond at which it is served so.
    pub fresh_until_ms: i64,
    /// Its numbers, little-endian float32.
    pub numbers: &'a [u8],
    /// A bit for each number, the lowest first: it is the row's own, and no default or NaN.
    pub own: &'a [u32],
}

/// The cached rows of a view.
#[derive(Debug)]
pub struct Table {
    /// Numbers of a row.
    width: usize,
    /// Words of a record's parts, and of all of it.
    own_words: usize,
    id_words: usize,
    stride: usize,
    blocks: Vec<Block>,
    /// Blocks in which records are free.
    with_free: Vec<u32>,
    rows: usize,
    shards: Vec<Shard>,
    index_bytes: usize,
    long_id_bytes: usize,
    /// Records in use lie among the first that many.
    slots: u32,
    /// Where the search for a record that was not read lately goes on.
    hand: u32,
    seed: u64,
}

impl Table {
    /// An empty one for rows of that many numbers. `seed`: a secret, so that nobody can make ids that collide.
    pub fn new(width: usize, seed: u64) -> Self {
        Table {
            width,
            own_words: width.div_ceil(32),
            id_words: 0,
            stride: 0,
            blocks: Vec::new(),
            with_free: Vec::new(),
            rows: 0,
            shards: Vec::new(),
            index_bytes: 0,
            long_id_bytes: 0,
            slots: 0,
            hand: 0,
            seed,
        }
    }

    /// How many rows it holds.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        self.blocks.len() * Block::bytes(self.stride) + self.index_bytes + self.long_id_bytes
    }

    /// How much more a new row would take.
    pub fn growth_bytes(&self, id: &[u8]) -> usize {
        if self.stride == 0 {
            let index = SHARDS * size_of::<Shard>() + Shard::default().growth_bytes();
            return Block::bytes(self.stride_for(id)) + index + long_id_bytes(id, Table::id_words_for(id));
        }
        let is_full = self.with_free.is_empty() && self.slots as usize == self.blocks.len() * BLOCK_ROWS;
        let block = if is_full { Block::bytes(self.stride) } else { 0 };
        block + self.shards[self.hash(id).0].growth_bytes() + long_id_bytes(id, self.id_words)
    }

    /// Gives up all rows.
    pub fn clear(&mut self) -> Remains {
        let emptied = std::mem::replace(self, Table::new(self.width, self.seed));
        Remains(emptied.blocks)
    }

    fn id_words_for(id: &[u8]) -> usize {
        ID_WORDS.into_iter().find(|words| id.len() <= words * 4).unwrap_or(ID_WORDS[0])
    }

    fn stride_for(&self, id: &[u8]) -> usize {
        let words = OWN_AT + self.own_words + Table::id_words_for(id) + self.width;
        // Whole cache lines, where that costs little.
        let lines = words.next_multiple_of(LINE_WORDS);
        if (lines - words) * 4 <= words {
            lines
        } else {
            words.next_multiple_of(2)
        }
    }

    /// The part of the index and the tag of an id.
    fn hash(&self, id: &[u8]) -> (usize, u32) {
        let hash = xxh3_64_with_seed(id, self.seed);
        (hash as usize % SHARDS, (hash >> 32) as u32)
    }

    fn record(&self, slot: u32) -> &[u32] {
        let block = &self.blocks[slot as usize / BLOCK_ROWS];
        let at = block.start + slot as usize % BLOCK_ROWS * self.stride;
        &block.words[at..at + self.stride]
    }

    fn record_mut(&mut self, slot: u32) -> &mut [u32] {
        let block = &mut self.blocks[slot as usize / BLOCK_ROWS];
        let at = block.start + slot as usize % BLOCK_ROWS * self.stride;
        &mut block.words[at..at + self.stride]
    }

    fn long_id(&self, slot: u32) -> Option<&[u8]> {
        self.blocks[slot as usize / BLOCK_ROWS].long_ids.get(&slot).map(AsRef::as_ref)
    }

    fn is_of(&self, slot: u32, id: &[u8]) -> bool {
        let record = self.record(slot);
        if record[0] & ID_LENGTH != id.len() as u32 {
            return false;
        }
        if id.len() > self.id_words * 4 {
            return self.long_id(slot).is_some_and(|long| *long == *id);
        }
        let words = &record[OWN_AT + self.own_words..][..self.id_words];
        let whole = id.chunks_exact(4);
        let rest = whole.remainder();
        words.iter().zip(whole).all(|(word, bytes)| *word == word_of(bytes))
            && (rest.is_empty() || words[id.len() / 4] == last_word(rest))
    }

    /// The record of an id.
    pub fn find(&self, id: &[u8]) -> Option<u32> {
        if self.shards.is_empty() {
            return None;
        }
        let (shard, tag) = self.hash(id);
        self.shards[shard].candidates(tag).find(|slot| self.is_of(*slot, id))
    }

    /// The records of ids, [`ABSENT`] for those that are not there.
    pub fn find_all(&self, ids: &[&[u8]], slots: &mut Vec<u32>, prefetch: impl Fn(*const u8)) {
        slots.clear();
        if self.shards.is_empty() {
            slots.resize(ids.len(), ABSENT);
            return;
        }
        for batch in ids.chunks(BATCH) {
            let mut hashes = [(0, 0); BATCH];
            for (id, hash) in batch.iter().zip(&mut hashes) {
                *hash = self.hash(id);
                self.prefetch_entry(*hash, &prefetch);
            }
            let first = slots.len();
            for (shard, tag) in &hashes[..batch.len()] {
                let slot = self.shards[*shard].candidates(*tag).next().unwrap_or(ABSENT);
                if slot != ABSENT {
                    self.prefetch_record(slot, &prefetch);
                }
                slots.push(slot);
            }
            for ((id, slot), (shard, tag)) in batch.iter().zip(&mut slots[first..]).zip(&hashes) {
                if *slot != ABSENT && !self.is_of(*slot, id) {
                    let others = self.shards[*shard].candidates(*tag);
                    *slot = others.into_iter().find(|slot| self.is_of(*slot, id)).unwrap_or(ABSENT);
                }
            }
        }
    }

    fn prefetch_entry(&self, (shard, tag): (usize, u32), prefetch: &impl Fn(*const u8)) {
        let shard = &self.shards[shard];
        if let Some(entry) = shard.entries.get(shard.home(tag)) {
            prefetch(std::ptr::from_ref(entry).cast());
        }
    }

    fn prefetch_record(&self, slot: u32, prefetch: &impl Fn(*const u8)) {
        let record = self.record(slot);
        record.iter().step_by(LINE_WORDS).for_each(|word| prefetch(std::ptr::from_ref(word).cast()));
    }

    /// Asks for what [`Table::find`] will need first, if called some time before.
    pub fn approach(&self, id: &[u8], prefetch: impl Fn(*const u8)) {
        if !self.shards.is_empty() {
            self.prefetch_entry(self.hash(id), &prefetch);
        }
    }

    /// Asks for what [`Table::edit`] will need next.
    pub fn approach_record(&self, id: &[u8], prefetch: impl Fn(*const u8)) {
        if !self.shards.is_empty() {
            let (shard, tag) = self.hash(id);
            let candidate = self.shards[shard].candidates(tag).next();
            candidate.into_iter().for_each(|slot| self.prefetch_record(slot, &prefetch));
        }
    }

    /// May a record be served at this time?
    pub fn is_fresh(&self, slot: u32, now_ms: i64) -> bool {
        now_ms <= time_of(self.record(slot))
    }

    /// Notes that a record was read.
    pub fn note_read(&mut self, slot: u32) {
        let record = self.record_mut(slot);
        // Most are noted already: a line that is only read stays clean.
        if record[0] & READ != JUST_READ {
            record[0] = record[0] & !READ | JUST_READ;
        }
    }

    /// Copies numbers of a record to `out`. `runs`: from which number, to which, how many.
    pub fn copy(&self, slot: u32, runs: &[(usize, usize, usize)], out: &mut [u8]) {
        let numbers = &self.record(slot)[OWN_AT + self.own_words + self.id_words..];
        for (from, to, count) in runs {
            let out = out[to * 4..(to + count) * 4].chunks_exact_mut(4);
            out.zip(&numbers[*from..from + count]).for_each(|(out, word)| out.copy_from_slice(&word.to_le_bytes()));
        }
    }

    /// Is that number of a record the row's own?
    pub fn is_own(&self, slot: u32, number: usize) -> bool {
        self.record(slot)[OWN_AT + number / 32] >> (number % 32) & 1 == 1
    }

    /// Keeps a row, in place of what was known of that id. With `may_grow` unset it takes the place of another.
    pub fn insert(&mut self, id: &[u8], row: &NewRow<'_>, may_grow: bool) {
        debug_assert!(row.numbers.len() == self.width * 4 && row.own.len() == self.own_words);
        let slot = match self.find(id) {
            Some(slot) => slot,
            None => {
                let Some(slot) = self.take_slot(id, may_grow) else { return };
                self.name(slot, id, may_grow);
                slot
            }
        };
        let (own_words, id_words, width) = (self.own_words, self.id_words, self.width);
        let record = self.record_mut(slot);
        set_time(record, row.fresh_until_ms);
        record[OWN_AT..OWN_AT + own_words].copy_from_slice(row.own);
        let numbers = &mut record[OWN_AT + own_words + id_words..][..width];
        numbers.iter_mut().zip(row.numbers.chunks_exact(4)).for_each(|(word, bytes)| *word = word_of(bytes));
    }

    /// A record for a new row. Without growing, another row makes room: one in the same part of the index where that is
    /// full.
    fn take_slot(&mut self, id: &[u8], may_grow: bool) -> Option<u32> {
        if !may_grow {
            if self.rows == 0 || long_id_bytes(id, self.id_words) > 0 {
                return None;
            }
            let part = &self.shards[self.hash(id).0];
            if !part.is_full() {
                self.evict();
            } else {
                let was_read = |slot: &u32| self.record(*slot)[0] & READ;
                let crowd = part.entries.iter().filter(|entry| **entry != NONE).map(|entry| slot_of(*entry));
                self.remove_slot(crowd.min_by_key(was_read)?);
            }
        }
        if let Some(block) = self.with_free.last().copied() {
            let slot = self.blocks[block as usize].free;
            let next = self.record(slot)[NEXT_FREE_AT];
            let block = &mut self.blocks[block as usize];
            block.free = next;
            block.free_count -= 1;
            if block.free_count == 0 {
                self.with_free.pop();
            }
            return Some(slot);
        }
        if !may_grow || self.slots == ABSENT - 1 {
            return None;
        }
        if self.stride == 0 {
            (self.stride, self.id_words) = (self.stride_for(id), Table::id_words_for(id));
            self.shards = vec![Shard::default(); SHARDS];
            self.index_bytes = SHARDS * size_of::<Shard>();
        }
        if self.slots as usize == self.blocks.len() * BLOCK_ROWS {
            self.blocks.push(Block::new(self.stride));
        }
        self.slots += 1;
        Some(self.slots - 1)
    }

    /// Makes an unused record that of an id.
    fn name(&mut self, slot: u32, id: &[u8], may_grow: bool) {
        let (shard, tag) = self.hash(id);
        let (own_words, id_words) = (self.own_words, self.id_words);
        let record = self.record_mut(slot);
        record.fill(0);
        record[0] = IS_USED | id.len() as u32;
        if id.len() > id_words * 4 {
            self.long_id_bytes += long_id_bytes(id, id_words);
            self.blocks[slot as usize / BLOCK_ROWS].long_ids.insert(slot, id.into());
        } else {
            let words = &mut record[OWN_AT + own_words..][..id_words];
            words.iter_mut().zip(id.chunks(4)).for_each(|(word, bytes)| *word = last_word(bytes));
        }
        let part = &mut self.shards[shard];
        let before = part.entries.capacity();
        part.insert(slot, tag, may_grow);
        self.index_bytes += (part.entries.capacity() - before) * 8;
        self.rows += 1;
    }

    /// The id of a record in use.
    fn id_of(&self, slot: u32) -> SmallVec<[u8; 64]> {
        let record = self.record(slot);
        let length = (record[0] & ID_LENGTH) as usize;
        if let Some(long) = self.long_id(slot).filter(|_| length > self.id_words * 4) {
            return SmallVec::from_slice(long);
        }
        let words = &record[OWN_AT + self.own_words..][..length.div_ceil(4)];
        let mut id: SmallVec<[u8; 64]> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        id.truncate(length);
        id
    }

    /// Frees the record of a row that was not read lately, or of some row.
    fn evict(&mut self) {
        for tried in 0..SWEEP_MAX.min(self.slots as usize) {
            self.hand = if self.hand + 1 < self.slots { self.hand + 1 } else { 0 };
            let hand = self.hand;
            let record = self.record_mut(hand);
            let was_read = record[0] & READ != 0;
            if was_read {
                record[0] -= PASSED_ONCE;
            }
            if record[0] & IS_USED != 0 && (!was_read || tried + 1 == SWEEP_MAX) {
                self.remove_slot(hand);
                return;
            }
        }
        // All of a small table were read: the next one goes.
        if let Some(slot) = (0..self.slots).find(|slot| self.record(*slot)[0] & IS_USED != 0) {
            self.remove_slot(slot);
        }
    }

    /// Forgets a row. False: it was not there.
    pub fn remove(&mut self, id: &[u8]) -> bool {
        match self.find(id) {
            Some(slot) => {
                self.remove_slot(slot);
                true
            }
            None => false,
        }
    }

    fn remove_slot(&mut self, slot: u32) {
        let (shard, tag) = self.hash(&self.id_of(slot));
        self.shards[shard].remove(slot, tag);
        let block = &mut self.blocks[slot as usize / BLOCK_ROWS];
        if let Some(long) = block.long_ids.remove(&slot) {
            self.long_id_bytes -= long_id_bytes(&long, 0);
        }
        let next = std::mem::replace(&mut block.free, slot);
        block.free_count += 1;
        if block.free_count == 1 {
            self.with_free.push(slot / BLOCK_ROWS as u32);
        }
        let record = self.record_mut(slot);
        (record[0], record[NEXT_FREE_AT]) = (0, next);
        self.rows -= 1;
    }

    /// Gives up the last block with its rows. False: there is none.
    pub fn shrink(&mut self) -> bool {
        let Some(last) = self.blocks.len().checked_sub(1) else { return false };
        let first = (last * BLOCK_ROWS) as u32;
        for slot in first..self.slots {
            if self.record(slot)[0] & IS_USED != 0 {
                self.remove_slot(slot);
            }
        }
        self.with_free.retain(|block| (*block as usize) < last);
        self.slots = self.slots.min(first);
        self.hand = 0;
        self.blocks.pop();
        if self.blocks.is_empty() {
            *self = Table::new(self.width, self.seed);
        }
        true
    }

    /// Changes a row in place. `None`: it is not there.
    pub fn edit(&mut self, id: &[u8]) -> Option<Edit<'_>> {
        let slot = self.find(id)?;
        let (own_words, id_words) = (self.own_words, self.id_words);
        let record = self.record_mut(slot);
        let (head, rest) = record.split_at_mut(OWN_AT + own_words);
        Some(Edit { head, numbers: &mut rest[id_words..] })
    }
}

/// A row that changes in place.
pub struct Edit<'t> {
    head: &'t mut [u32],
    numbers: &'t mut [u32],
}

impl Edit<'_> {
    /// The last millisecond at which it is served so.
    pub fn fresh_until_ms(&self) -> i64 {
        time_of(self.head)
    }

    /// Another time of that kind.
    pub fn set_fresh_until_ms(&mut self, time_ms: i64) {
        set_time(self.head, time_ms);
    }

    /// Other numbers from that one on, little-endian float32.
    pub fn set_numbers(&mut self, first: usize, bytes: &[u8], are_own: bool) {
        for (at, bytes) in (first..).zip(bytes.chunks_exact(4)) {
            self.numbers[at] = word_of(bytes);
            let own = &mut self.head[OWN_AT + at / 32];
            *own = *own & !(1 << (at % 32)) | u32::from(are_own) << (at % 32);
        }
    }
}

/// Four bytes as a word.
fn word_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Up to four bytes as a word; what is missing is zero.
fn last_word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn time_of(record: &[u32]) -> i64 {
    (u64::from(record[TIME_AT]) | u64::from(record[TIME_AT + 1]) << 32) as i64
}

fn set_time(record: &mut [u32], time_ms: i64) {
    (record[TIME_AT], record[TIME_AT + 1]) = (time_ms as u32, (time_ms as u64 >> 32) as u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A row that a number stands for.
    fn put(table: &mut Table, id: &[u8], n: u32, may_grow: bool) {
        let numbers: Vec<u8> = (0..table.width).flat_map(|i| ((n + i as u32) as f32).to_le_bytes()).collect();
        let own: Vec<u32> = (0..table.own_words).map(|i| n.rotate_left(i as u32)).collect();
        table.insert(id, &NewRow { fresh_until_ms: i64::from(n) - 5, numbers: &numbers, own: &own }, may_grow);
    }

    fn check(table: &Table, slot: u32, n: u32) {
        let mut out = vec![0; table.width * 4 + 4];
        table.copy(slot, &[(0, 1, table.width)], &mut out);
        let numbers: Vec<f32> =
            out[4..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(numbers, (0..table.width).map(|i| (n + i as u32) as f32).collect::<Vec<_>>());
        assert!(table.is_fresh(slot, i64::from(n) - 5) && !table.is_fresh(slot, i64::from(n) - 4));
        (0..table.width).for_each(|i| {
            assert_eq!(table.is_own(slot, i), n.rotate_left(i as u32 / 32) >> (i % 32) & 1 == 1);
        });
    }

    fn id(n: u32, length: usize) -> Vec<u8> {
        let text = format!("entity-{n}-");
        text.bytes().cycle().take(length.max(1)).chain(n.to_le_bytes()).collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u32, bool),
        Remove(u32),
        Shrink,
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0u32..3_000, prop::bool::weighted(0.9)).prop_map(|(n, grow)| Step::Put(n, grow)),
            6 => (0u32..3_000).prop_map(Step::Remove),
            1 => Just(Step::Shrink),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// It never says of an id what was not said of it last, whatever is dropped to make room.
        #[test]
        fn what_is_found_is_what_was_put_last(
            width in prop_oneof![1usize..9, 30usize..70], lengths in (1usize..90, 1usize..90),
            steps in proptest::collection::vec(step(), 1..4_000),
        ) {
            let mut table = Table::new(width, 7);
            let mut known: HashMap<u32, u32> = HashMap::new();
            let id = |n: u32| id(n, if n % 5 == 0 { lengths.1 } else { lengths.0 });
            for (i, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Put(n, may_grow) => {
                        let before = table.bytes();
                        let growth = table.growth_bytes(&id(n));
                        put(&mut table, &id(n), i as u32, may_grow);
                        known.insert(n, i as u32);
                        prop_assert!(may_grow || table.blocks.len() * Block::bytes(table.stride) <= before);
                        prop_assert!(table.bytes() <= before + growth, "grew by more than was said");
                        prop_assert!(may_grow || table.bytes() <= before);
                    }
                    Step::Remove(n) => {
                        table.remove(&id(n));
                        known.remove(&n);
                        prop_assert_eq!(table.find(&id(n)), None);
                    }
                    Step::Shrink => drop(table.shrink()),
                    Step::Clear => {
                        let mut remains = table.clear();
                        while remains.free_some() {}
                        known.clear();
                    }
                }
            }
            let numbers: Vec<u32> = (0..3_000).collect();
            let ids: Vec<Vec<u8>> = numbers.iter().map(|n| id(*n)).collect();
            let ids: Vec<&[u8]> = ids.iter().map(Vec::as_slice).collect();
            let mut slots = Vec::new();
            table.find_all(&ids, &mut slots, |_| ());
            let mut found = 0;
            for (n, slot) in numbers.iter().zip(&slots) {
                prop_assert_eq!(table.find(ids[*n as usize]).unwrap_or(ABSENT), *slot);
                if *slot != ABSENT {
                    found += 1;
                    prop_assert_eq!(&table.id_of(*slot)[..], ids[*n as usize]);
                    check(&table, *slot, known[n]);
                }
            }
            prop_assert_eq!(found, table.rows());
        }
    }

    #[test]
    fn all_rows_are_there_while_there_is_room() {
        let mut table = Table::new(6, 1);
        (0..20_000).for_each(|n| put(&mut table, &id(n, 14), n, true));
        assert_eq!(table.rows(), 20_000);
        (0..20_000).for_each(|n| check(&table, table.find(&id(n, 14)).expect("a row"), n));
        // Six numbers and an id of 18 bytes are one cache line.
        assert_eq!(table.stride, LINE_WORDS);
        assert!(table.blocks.iter().all(|b| (b.words[b.start..].as_ptr() as usize) % 64 == 0));
        // The index is at most three quarters full and doubles: 11 to 22 bytes a row.
        assert!(table.bytes() < 20_000 * (64 + 24), "{}", table.bytes());
    }

    #[test]
    fn rows_that_are_read_outlive_the_others() {
        let mut table = Table::new(2, 1);
        (0..1_000).for_each(|n| put(&mut table, &id(n, 9), n, true));
        for n in 1_000..5_000 {
            (0..100).for_each(|n| {
                let slot = table.find(&id(n, 9)).expect("a row that is read again and again");
                table.note_read(slot);
            });
            put(&mut table, &id(n, 9), n, false);
        }
        assert_eq!(table.rows(), 1_000);
    }

    #[test]
    fn a_row_changes_in_place() {
        let mut table = Table::new(40, 1);
        put(&mut table, b"x", 0, true);
        assert!(table.edit(b"y").is_none());
        let mut edit = table.edit(b"x").expect("a row");
        assert_eq!(edit.fresh_until_ms(), -5);
        edit.set_fresh_until_ms(i64::MAX);
        edit.set_numbers(31, &[7.5f32.to_le_bytes(), 8.5f32.to_le_bytes()].concat(), true);
        let slot = table.find(b"x").expect("a row");
        let mut out = vec![0; 12];
        table.copy(slot, &[(30, 0, 3)], &mut out);
        assert_eq!(out, [30f32, 7.5, 8.5].map(f32::to_le_bytes).concat());
        assert!(table.is_fresh(slot, i64::MAX) && table.is_own(slot, 31) && table.is_own(slot, 32));
        assert!(!table.is_own(slot, 30) && !table.is_own(slot, 33));
        table.edit(b"x").expect("a row").set_numbers(32, &f32::NAN.to_le_bytes(), false);
        assert!(table.is_own(slot, 31) && !table.is_own(slot, 32));
    }
}
