"""Words and names that `dialogue` inserts, by language."""

from __future__ import annotations

from onmt_llm.data.transforms.dialogue.text import Wording

_FIRST_EN = """
Aaron Abigail Adam Alice Amanda Amy Andrew Angela Anna Anthony Barbara Benjamin Betty Brandon Brian Carol Catherine
Charles Chloe Christine Daniel David Deborah Diana Donald Dorothy Edward Elizabeth Emily Emma Eric Ethan Frank Gary
George Grace Hannah Harry Heather Helen Henry Jack Jacob James Janet Jason Jennifer Jessica John Jonathan Joseph Joyce
Judith Julia Justin Karen Kathleen Kevin Larry Laura Linda Lisa Margaret Maria Mark Martha Mary Matthew Megan Michael
Nancy Nathan Nicholas Olivia Pamela Patricia Paul Peter Rachel Raymond Rebecca Richard Robert Roger Ruth Ryan Samuel
Sandra Sarah Scott Sharon Sophia Stephen Susan Teresa Thomas Timothy Victoria Virginia Walter William Zachary
"""
_LAST_EN = """
Adams Allen Anderson Bailey Baker Barnes Bell Bennett Brooks Brown Butler Campbell Carter Clark Collins Cook Cooper Cox
Davis Edwards Evans Fisher Foster Gray Green Hall Harris Henderson Hill Howard Hughes Jackson James Jenkins Johnson
Jones Kelly King Lee Lewis Long Martin Miller Mitchell Moore Morgan Morris Murphy Myers Nelson Parker Perry Peterson
Phillips Powell Price Reed Richardson Roberts Robinson Rogers Ross Russell Sanders Scott Smith Stewart Sullivan Taylor
Thomas Thompson Turner Walker Ward Watson White Williams Wilson Wood Wright Young
"""
_FIRST_FR = """
Adèle Agathe Alain Alexandre Alice Amélie André Anne Antoine Arnaud Arthur Aurélie Baptiste Béatrice Benoît Bernard
Brigitte Camille Caroline Catherine Cécile Céline Charles Charlotte Chloé Christian Christophe Claire Claude Clément
Daniel Danielle David Denis Dominique Édouard Élise Élodie Émilie Emma Emmanuel Éric Fabrice Florence François Françoise
Frédéric Gabriel Gérard Gilles Guillaume Hélène Henri Hugo Inès Isabelle Jacques Jean Jeanne Jérôme Joël Juliette Julien
Karine Laurence Laurent Léa Louis Louise Luc Lucie Madeleine Manon Marc Marguerite Marie Marion Martine Mathieu Maxime
Michel Monique Nathalie Nicolas Nicole Odile Olivier Pascal Patrick Paul Pauline Philippe Pierre Quentin Raphaël René
Robert Romain Sandrine Sébastien Simon Solène Sophie Stéphane Suzanne Sylvie Théo Thomas Valérie Véronique Victor
Vincent Virginie Yves
"""
_LAST_FR = """
André Arnaud Aubert Barbier Bernard Bertrand Blanc Blanchard Bonnet Boucher Bourgeois Boyer Brun Brunet Caron Chevalier
Clément Colin David Denis Deschamps Dubois Dufour Dumas Dupont Durand Duval Fabre Faure Fleury Fontaine Fournier
François Gaillard Garnier Gautier Gérard Girard Giraud Guérin Guillaume Henry Hubert Jacob Joly Lacroix Lambert Laurent
Leclerc Lefebvre Lefèvre Legrand Lemaire Leroux Leroy Marchand Marie Martin Masson Mathieu Mercier Meunier Meyer Michel
Moreau Morel Morin Moulin Muller Nicolas Noël Olivier Perrin Petit Picard Renard Renaud Richard Rivière Robert Robin
Roche Rousseau Roussel Roux Roy Schmitt Simon Thomas Vidal Vincent
"""

WORDINGS = {
    "en": Wording(
        speaker="Speaker",
        events={"PII": "Name", "NOISE": "noise", "LAUGHTER": "laughter"},
        first_names=tuple(_FIRST_EN.split()),
        last_names=tuple(_LAST_EN.split()),
    ),
    "fr": Wording(
        speaker="Intervenant",
        events={"PII": "Nom", "NOISE": "bruit", "LAUGHTER": "rire"},
        first_names=tuple(_FIRST_FR.split()),
        last_names=tuple(_LAST_FR.split()),
    ),
}
