"""List sources for tests."""

from latentq.sources import Listing


def listed(source):
    """List a source to the end; returns its samples and notes, as tuples."""
    listing = source.listing()
    return Listing(tuple(listing.samples), tuple(listing.notes))


def known(listing):
    """Return the names of the facts that any sample of a listing has, without those that say where it is."""
    facts = ("label", "label_text", "caption", "captions", "id", "fault")
    return tuple(name for name in facts if any(getattr(sample, name) not in (None, "") for sample in listing.samples))


def read_back(listing, folder, unit_size=4096):
    """Write a listing as a list in `folder`; returns the list, read from there."""
    from latentq.run.sample_list import SampleList, cut_into_units, list_parts, write_list

    write_list(folder, list_parts((unit, 0) for unit in cut_into_units(listing.samples, unit_size)))
    return SampleList(folder)
