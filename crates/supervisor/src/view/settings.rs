//! What may be set of a function, as its attributes show it.

/// The attributes of a function that root writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The only driver that may bind it, if somebody said so.
    pub driver_override: Option<String>,
    /// How often somebody enabled it by `enable`.
    pub enabled: u32,
    /// NUMA node; -1 for none.
    pub numa_node: i32,
    /// Whether it may lose its power.
    pub d3cold_allowed: bool,
    /// Whether its parity errors are to be ignored.
    pub broken_parity: bool,
    /// How it is reset.
    pub reset_methods: ResetMethods,
    /// Whether it is suspended when nobody needs it.
    pub power: PowerControl,
    /// Whether its virtual functions are offered to drivers that nobody chose.
    pub sriov_autoprobe: bool,
}

/// The ways of resetting a function that are left.
// DIFFERS: a function alone on its bus has `bus` too on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetMethods {
    /// A function-level reset.
    Flr,
    /// None.
    None,
}

/// `power/control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerControl {
    /// Never.
    On,
    /// Yes.
    Auto,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            driver_override: None,
            enabled: 0,
            numa_node: -1,
            d3cold_allowed: true,
            broken_parity: false,
            reset_methods: ResetMethods::Flr,
            power: PowerControl::On,
            sriov_autoprobe: true,
        }
    }
}

impl ResetMethods {
    /// What a text asks for (`reset_method_store`); `None` if it names what there is not.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let words = || text.split(' ').map(str::trim).filter(|word| !word.is_empty());
        match text {
            "default" => Some(Self::Flr),
            // There are six others, and each needs its place.
            _ if words().count() > 7 || words().any(|word| word != "flr") => None,
            _ if words().count() == 0 => Some(Self::None),
            _ => Some(Self::Flr),
        }
    }

    /// The text that is read.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Flr => "flr\n",
            Self::None => "",
        }
    }
}

impl PowerControl {
    /// The text that is read.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::On => "on\n",
            Self::Auto => "auto\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_resets_has_those_that_there_are() {
        let parse = ResetMethods::parse;
        assert_eq!(
            [parse("flr"), parse("default"), parse("flr  flr")],
            [Some(ResetMethods::Flr); 3]
        );
        assert_eq!([parse(""), parse(" ")], [Some(ResetMethods::None); 2]);
        assert_eq!([parse("bus"), parse("flr,flr"), parse("flr bus")], [None; 3]);
    }
}
