//! Which packets are the driver's (5.1.6.5.1, 5.1.6.5.2).

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// Addresses that a filter holds at most; with more it takes all of their kind.
const ADDRESSES_MAX: usize = 64;

/// The bit of an address's first byte that makes it a group's.
const GROUP: u8 = 1;

/// An address of one card as people write it.
pub(super) fn address(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & GROUP == 0 && mac != [0; 6]).then_some(mac)
}

/// What the driver wants to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// The card's own address.
    pub(super) own: Mac,
    pub(super) promiscuous: bool,
    pub(super) all_groups: bool,
    /// More addresses; `None` when there are too many to tell apart.
    single: Option<Vec<Mac>>,
    groups: Option<Vec<Mac>>,
}

impl Filter {
    pub(super) fn new(own: Mac) -> Self {
        let none = || Some(Vec::new());
        Self { own, promiscuous: true, all_groups: false, single: none(), groups: none() }
    }

    /// Takes the two tables of VIRTIO_NET_CTRL_MAC_TABLE_SET; `None` when they are cut short.
    pub(super) fn set_tables(&mut self, bytes: &[u8]) -> Option<()> {
        let (single, rest) = table(bytes)?;
        let (groups, _) = table(rest)?;
        (self.single, self.groups) = (single, groups);
        Some(())
    }

    /// Whether the driver gets this packet.
    pub(super) fn takes(&self, packet: &[u8]) -> bool {
        let Some(target) = packet.first_chunk::<6>() else { return false };
        let among = |table: &Option<Vec<Mac>>| {
            table.as_ref().is_none_or(|addresses| addresses.contains(target))
        };
        if self.promiscuous || *target == BROADCAST || *target == self.own {
            true
        } else if target[0] & GROUP != 0 {
            self.all_groups || among(&self.groups)
        } else {
            among(&self.single)
        }
    }
}

/// A table of addresses and what follows it; one with too many addresses is `None` inside.
fn table(bytes: &[u8]) -> Option<(Option<Vec<Mac>>, &[u8])> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (addresses, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    let (addresses, _) = addresses.as_chunks::<6>();
    Some(((count <= ADDRESSES_MAX).then(|| addresses.to_vec()), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [0x52, 0x54, 0, 1, 2, 3];
    const OTHER: Mac = [0x52, 0x54, 0, 9, 9, 9];
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

    fn tables(single: &[Mac], groups: &[Mac]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for table in [single, groups] {
            bytes.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
            bytes.extend(table.iter().flatten());
        }
        bytes
    }

    #[test]
    fn an_address_is_six_bytes_of_one_card() {
        assert_eq!(address("52:54:00:01:02:03"), Some(OWN));
        for text in
            ["", "52:54:00:01:02", "52:54:00:01:02:03:04", "1:2:3:4:5:6", "zz:54:00:01:02:03"]
        {
            assert_eq!(address(text), None, "{text:?}");
        }
        assert_eq!(address("01:00:5e:00:00:01"), None, "a group");
        assert_eq!(address("00:00:00:00:00:00"), None, "nobody");
    }

    #[test]
    fn a_filter_takes_its_own_the_broadcast_and_what_is_in_its_tables() {
        let mut filter = Filter { promiscuous: false, ..Filter::new(OWN) };
        let takes = |filter: &Filter| [OWN, BROADCAST, OTHER, GROUP].map(|mac| filter.takes(&mac));
        assert_eq!(takes(&filter), [true, true, false, false]);
        filter.set_tables(&tables(&[OTHER], &[])).unwrap();
        assert_eq!(takes(&filter), [true, true, true, false]);
        filter.set_tables(&tables(&[], &[GROUP])).unwrap();
        assert_eq!(takes(&filter), [true, true, false, true]);
        filter.set_tables(&tables(&[], &[OWN; 65])).unwrap();
        assert_eq!(takes(&filter), [true, true, false, true], "too many are all");
        filter.set_tables(&tables(&[], &[])).unwrap();
        filter.all_groups = true;
        assert_eq!(takes(&filter), [true, true, false, true]);
        filter.promiscuous = true;
        assert_eq!(takes(&filter), [true; 4]);
        assert!(!filter.takes(&[0xff; 5]), "a packet without an address is nobody's");
    }

    #[test]
    fn tables_that_are_cut_short_change_nothing() {
        let mut filter = Filter::new(OWN);
        let before = filter.clone();
        let whole = tables(&[OTHER], &[GROUP]);
        for length in 0..whole.len() {
            assert_eq!(filter.set_tables(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(filter.set_tables(&[0xff; 16]), None, "more than there are");
        assert_eq!(filter, before);
    }
}
