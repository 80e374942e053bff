"""What the SNOMED codes of the 12-lead databases say in PTB-XL's SCP codes: data only.

Codes and names are those of the PhysioNet/CinC Challenge 2021 (Reyna et al., Computing in Cardiology
2021; dx_mapping_scored.csv and dx_mapping_unscored.csv of physionetchallenges/evaluation-2021), and
four more of CSN's ConditionNames_SNOMED-CT.csv (Zheng et al., Scientific Data 7, 48, 2020). That
Challenge coded PTB-XL in them too, so that its counts show which SCP code it took each one for
(QWAVE 548, LPR 340, STE_ 28, ISCIN 219, RAO/RAE 99 …). Unqualified bundle branch blocks are complete
ones there.

A line is ``code | stated SCP codes | SCP codes left open | name``. Open is what may be there or not:
"bradycardia" is perhaps a sinus bradycardia, "myocardial infarction" has an unknown site. What is
open is neither stated nor denied. ``@name`` stands for a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Meaning:
    """What one SNOMED code says: SCP codes that it states, and those about which it leaves doubt."""

    name: str
    stated: frozenset[str]
    open: frozenset[str]


_GROUPS: Final = {
    "@mi": "IMI ASMI AMI ALMI ILMI LMI PMI IPMI IPLMI QWAVE",
    "@isc": "ISC_ ISCAL ISCIL ISCIN ISCAS ISCLA ISCAN INJAS INJAL INJIN INJIL STD_",
    "@st": "NST_ STD_ STE_ NDT NT_ TAB_ INVT LOWT ISC_ DIG EL",
    "@t": "NDT NT_ TAB_ INVT LOWT NST_",
    "@bbb": "CLBBB CRBBB ILBBB IRBBB LAFB LPFB IVCD",
    "@svt": "SVTAC PSVT SVARR STACH",
    "@rhythm": "SR AFIB AFLT STACH SBRAD SARRH SVARR SVTAC PSVT BIGU TRIGU PVC PAC PRC(S)",
}
_TABLE: Final = """
164889003 | AFIB | | atrial fibrillation
164890007 | AFLT | | atrial flutter
6374002 | | @bbb | bundle branch block
426627000 | | SBRAD | bradycardia
733534002 | CLBBB | | complete left bundle branch block
713427006 | CRBBB | | complete right bundle branch block
270492004 | 1AVB | LPR | 1st degree av block
713426002 | IRBBB | | incomplete right bundle branch block
39732003 | | | left axis deviation
445118002 | LAFB | | left anterior fascicular block
164909002 | CLBBB | ILBBB LAFB LPFB | left bundle branch block
251146004 | LVOLT | | low qrs voltages
698252002 | IVCD | | nonspecific intraventricular conduction disorder
426783006 | SR | | sinus rhythm
284470004 | PAC | PRC(S) | premature atrial contraction
10370003 | PACE | | pacing rhythm
365413008 | | ASMI AMI | poor R wave Progression
427172004 | PVC | PRC(S) | premature ventricular contractions
164947007 | LPR | 1AVB | prolonged pr interval
111975006 | LNGQT | | prolonged qt interval
164917005 | QWAVE | | qwave abnormal
47665007 | | | right axis deviation
59118001 | CRBBB | IRBBB | right bundle branch block
427393009 | SARRH | SR | sinus arrhythmia
426177001 | SBRAD | SR | sinus bradycardia
427084000 | STACH | SR | sinus tachycardia
63593006 | PRC(S) | PAC | supraventricular premature beats
164934002 | TAB_ | @t | t wave abnormal
59931005 | INVT | @t | t wave inversion
17338001 | PVC | PRC(S) | ventricular premature beats
233892002 | | | accelerated atrial escape rhythm
164951009 | ABQRS | | abnormal QRS
251187003 | | PAC | atrial escape beat
61277005 | | ABQRS | accelerated idioventricular rhythm
426664006 | | | accelerated junctional rhythm
251139008 | | | suspect arm ecg leads reversed
57054005 | | @mi @st | acute myocardial infarction
413444003 | | @isc @mi | acute myocardial ischemia
426434006 | ISCAN | @isc | anterior ischemia
54329005 | AMI | @mi | anterior myocardial infarction
251173003 | BIGU | PAC | atrial bigeminy
195080001 | | AFIB AFLT | atrial fibrillation and flutter
195126007 | | LAO/LAE RAO/RAE | atrial hypertrophy
251268003 | PACE | | atrial pacing pattern
106068003 | | | atrial rhythm
713422000 | SVTAC | @svt | atrial tachycardia
233917008 | | 1AVB 2AVB LPR | av block
50799005 | | | atrioventricular dissociation
29320008 | | | atrioventricular junctional rhythm
251166008 | SVTAC | @svt | atrioventricular node reentrant tachycardia
233897008 | SVTAC | @svt | atrioventricular reentrant tachycardia
251170000 | PAC | PRC(S) | blocked premature atrial contraction
418818005 | | IRBBB CRBBB @st | brugada
74615001 | | SBRAD STACH | brady tachy syndrome
426749004 | AFIB | | chronic atrial fibrillation
251199005 | | | counterclockwise rotation
61721007 | | | clockwise or counterclockwise vectorcardiographic loop
698247007 | | @rhythm | cardiac dysrhythmia
27885002 | | | complete heart block
204384007 | | 1AVB 2AVB LPR | congenital incomplete atrioventricular heart block
53741008 | | @isc @mi | coronary heart disease
413844008 | | @isc | chronic myocardial ischemia
251198002 | | | clockwise rotation
82226007 | | @bbb | diffuse intraventricular block
428417006 | | @st | early repolarization
13640000 | | PVC | fusion beats
164942001 | | ABQRS IVCD | fqrs wave
84114007 | | | heart failure
368009 | | | heart valve disorder
251259000 | | @t | high t-voltage
251200008 | | | indeterminate cardiac axis
195042002 | 2AVB | | 2nd degree av block
426183003 | 2AVB | | mobitz type II atrioventricular block
425419005 | ISCIN | @isc | inferior ischaemia
251120003 | ILBBB | | incomplete left bundle branch block
704997005 | STD_ | NST_ | inferior ST segment depression
49260003 | | | idioventricular rhythm
426995002 | | | junctional escape
251164006 | PRC(S) | PAC | junctional premature complex
426648003 | | @svt | junctional tachycardia
253352002 | | LAO/LAE | left atrial abnormality
67741000119109 | LAO/LAE | | left atrial enlargement
446813000 | | LAO/LAE | left atrial hypertrophy
425623009 | ISCLA | @isc | lateral ischaemia
445211001 | LPFB | | left posterior fascicular block
164873001 | LVH | VCLVH HVOLT | left ventricular hypertrophy
55827005 | HVOLT | LVH VCLVH | left ventricular high voltage
370365005 | | LVH VCLVH HVOLT @st | left ventricular strain
164865005 | | @mi | myocardial infarction
164861001 | | @isc | myocardial ischemia
54016002 | 2AVB | | mobitz type i wenckebach atrioventricular block
428750005 | | @st @t | nonspecific st t abnormality
164867002 | | @mi | old myocardial infarction
282825002 | | AFIB | paroxysmal atrial fibrillation
251205003 | | LAO/LAE | prolonged P wave
67198005 | PSVT | @svt | paroxysmal supraventricular tachycardia
425856008 | | | paroxysmal ventricular tachycardia
164912004 | | RAO/RAE LAO/LAE | p wave change
253339007 | | RAO/RAE | right atrial abnormality
164921003 | | QWAVE ABQRS | r wave abnormal
446358003 | RAO/RAE | | right atrial hypertrophy
67751000119106 | | RAO/RAE | right atrial high voltage
314208002 | AFIB | | rapid atrial fibrillation
89792004 | RVH | HVOLT | right ventricular hypertrophy
17366009 | | SARRH SVARR | sinus atrium to atrial wandering rhythm
65778007 | | SARRH | sinoatrial block
5609005 | | SARRH | sinus arrest
60423000 | | SBRAD SARRH | sinus node dysfunction
49578007 | | | shortened pr interval
77867006 | | | decreased qt interval
55930002 | | @st | s t changes
429622005 | STD_ | NST_ | st depression
164931005 | STE_ | NST_ | st elevation
164930006 | | @st | st interval abnormal
251168009 | BIGU | PAC | supraventricular bigeminy
426761007 | SVTAC | @svt | supraventricular tachycardia
266257000 | | | transient ischemic attack
251223006 | | RAO/RAE LAO/LAE | tall p wave
164937009 | | | u wave abnormal
11157007 | BIGU | PVC | ventricular bigeminy
164884008 | PVC | PRC(S) | ventricular ectopics
75532003 | | PVC | ventricular escape beat
81898007 | | | ventricular escape rhythm
164896001 | | | ventricular fibrillation
111288001 | | | ventricular flutter
266249003 | | LVH RVH SEHYP VCLVH HVOLT | ventricular hypertrophy
195060002 | | WPW | ventricular pre excitation
251266004 | PACE | | ventricular pacing pattern
251182009 | PVC | PRC(S) | paired ventricular premature complexes
164895002 | | | ventricular tachycardia
251180001 | TRIGU | PVC | ventricular trigeminy
195101003 | | SARRH SVARR | wandering atrial pacemaker
74390002 | WPW | | wolff parkinson white pattern
28189009 | 2AVB | | 2nd degree av block type 2
251147008 | | LVOLT | low qrs voltage in the limb leads
251148003 | | LVOLT | low qrs voltage in the chest leads
233896004 | SVTAC | @svt | atrioventricular node reentrant tachycardia
"""


def _codes(text: str) -> frozenset[str]:
    return frozenset(code for word in text.split() for code in _GROUPS.get(word, word).split())


def _meanings(table: str) -> dict[str, Meaning]:
    cells = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    return {code: Meaning(name, _codes(stated), _codes(left)) for code, stated, left, name in cells}


MEANINGS: Final = _meanings(_TABLE)
# Where a database uses a code for more than its name says, by the letters that its record names begin with.
# CSN's own table gives 164909002 also to blocks of the left front and back bundle; and among Ningbo's 34,905
# records the Challenge counts 7,615 of flutter and none of fibrillation, so flutter stands for both there.
EXCEPTIONS: Final = {
    "JS": _meanings(
        """
164909002 | | CLBBB ILBBB LAFB LPFB | left bundle branch block
164890007 | | AFIB AFLT | atrial flutter
"""
    )
}
